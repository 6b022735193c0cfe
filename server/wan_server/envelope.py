"""The outer shape of every answer: `{"success", "status", "data", "messages"}`, or problem+json for errors.

The superset satisfies the clients of all three generations: the oldest read `success`, the newest `data`, and those
between ask for bare data with `X-API-Version: 2`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from wan_server.errors import WanboxError

Json = dict[str, Any]

PROBLEM: Final = "application/problem+json"
#: clients take the error code from what follows /errors/
ERROR_BASE: Final = "https://api.inference.sh/errors/"
BARE_VERSION: Final = "2"

#: code and title for errors that the framework raises itself
_FRAMEWORK: Final = {
    400: ("invalid_request", "Invalid request"),
    401: ("unauthorized", "Unauthorized"),
    403: ("forbidden", "Forbidden"),
    404: ("not_found", "Not found"),
    405: ("method_not_allowed", "Method not allowed"),
    413: ("limit_exceeded", "Content too large"),
    422: ("validation_error", "Validation error"),
}

log = logging.getLogger(__name__)


def wrap(data: Any, status: int = 200) -> Json:
    """`data` in the envelope."""
    return {"success": status < 400, "status": status, "data": data, "messages": []}


def reply(request: Request, data: Any, status: int = 200) -> JSONResponse:
    """A successful answer, bare when the client asks for version 2."""
    bare = request.headers.get("x-api-version") == BARE_VERSION
    return JSONResponse(data if bare else wrap(data, status), status)


def problem(error: WanboxError, **more: Any) -> JSONResponse:
    """An error of ours as problem+json; `more` are extension members."""
    body = problem_body(error.status, error.code, error.title, error.detail) | more
    return JSONResponse(body, error.status, headers=error.headers, media_type=PROBLEM)


def problem_body(status: int, code: str, title: str, detail: str) -> Json:
    """RFC 9457 members, and beside them what older clients look for."""
    return {
        "type": ERROR_BASE + code,
        "title": title,
        "status": status,
        "detail": detail,
        "success": False,
        "error": {"code": code, "message": detail},
    }


def install_errors(app: FastAPI) -> None:
    """Make every error of the application, the framework's own too, a problem+json."""
    app.add_exception_handler(WanboxError, _on_wanbox_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)


def describe(errors: Any, prefix: str = "") -> str:
    """Pydantic's errors as `input.duration: must be at most 15 (got 20)`, joined by semicolons."""
    return "; ".join(_describe_one(item, prefix) for item in errors)


def _on_wanbox_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, WanboxError)
    return problem(error)


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code, title = _FRAMEWORK.get(error.status_code, ("invalid_request", "Error"))
    detail = str(error.detail)
    if error.status_code == 404:
        detail = f"there is no route {request.method} {request.url.path}"
    if error.status_code == 405:
        detail = f"{request.url.path} does not answer to {request.method}"
    return _framework_problem(error.status_code, code, title, detail, error.headers)


def _on_invalid_parameter(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    code, title = _FRAMEWORK[422]
    return _framework_problem(422, code, title, describe(error.errors()), None)


def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(WanboxError("the server made a mistake; its log has the details"))


def _framework_problem(
    status: int, code: str, title: str, detail: str, headers: Mapping[str, str] | None
) -> JSONResponse:
    return JSONResponse(problem_body(status, code, title, detail), status, headers=headers, media_type=PROBLEM)


#: pydantic error type -> sentence; `{...}` are the error's own context values
_SENTENCES: Final = {
    "missing": "is required",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be more than {gt}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
}


def _describe_one(item: Json, prefix: str) -> str:
    where = ".".join([*([prefix] if prefix else []), *(str(part) for part in item["loc"])])
    sentence = _SENTENCES.get(item["type"])
    if sentence is None:
        return f"{where}: {item['msg'].removeprefix('Value error, ')}"
    said = sentence.format(**item.get("ctx", {}))
    return f"{where}: {said}{_got(item)}"


def _got(item: Json) -> str:
    value = item.get("input")
    if item["type"] == "missing":
        return ""
    if item["type"] in ("string_too_long", "too_long"):
        return f" (got {len(value or '')})"
    shown = repr(value)
    return f" (got {shown if len(shown) <= 60 else shown[:57] + '...'})"
