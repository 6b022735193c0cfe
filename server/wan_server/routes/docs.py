"""What the OpenAPI document says of answers and bodies. The routes name schemas; `openapi.py` holds them."""

from __future__ import annotations

from typing import Any, Final

from wan_server.envelope import PROBLEM

Responses = dict[int | str, dict[str, Any]]

_ERRORS: Final = {
    400: "The request cannot be read.",
    401: "A valid API key is needed.",
    403: "The upload URL is too old.",
    404: "There is no such thing.",
    409: "The state of things does not allow it.",
    413: "Too many bytes.",
    416: "The range lies outside of the file.",
    422: "A field has a value that cannot be used.",
    429: "Too much is waiting already.",
    503: "Not at the moment.",
}
#: errors that every route with a key may give
_ALWAYS: Final = (400, 401, 413, 422)


def answers(schema: str | None, *errors: int, media: tuple[str, ...] = (), status: int = 0) -> Responses:
    """Documented answers: the schema in its envelope (or raw media, or 204), and problem+json for errors."""
    found: Responses = {status or (200 if schema or media else 204): _success(schema, media)}
    return found | {code: problem_answer(code) for code in sorted({*_ALWAYS, *errors})}


def problem_answer(code: int) -> dict[str, Any]:
    """An error as it is documented."""
    return {"description": _ERRORS[code], "content": {PROBLEM: {"schema": ref("Problem")}}}


def body(schema: str, *, required: bool = True) -> dict[str, Any]:
    """A documented JSON body."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": ref(schema)}}}}


def ref(schema: str) -> dict[str, str]:
    """A reference into the document's components."""
    return {"$ref": f"#/components/schemas/{schema}"}


def _success(schema: str | None, media: tuple[str, ...]) -> dict[str, Any]:
    if media:
        return {"description": "OK", "content": {name: {"schema": {"type": "string"}} for name in media}}
    if schema is None:
        return {"description": "Done."}
    return {"description": "OK", "content": {"application/json": {"schema": _enveloped(schema)}}}


def _enveloped(schema: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["success", "status", "data", "messages"],
        "properties": {
            "success": {"type": "boolean"},
            "status": {"type": "integer"},
            "data": ref(schema),
            "messages": {"type": "array", "items": {"type": "object"}},
        },
    }
