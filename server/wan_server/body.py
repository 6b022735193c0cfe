"""Request bodies: JSON of bounded size and depth, without the values that JSON does not have."""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

from starlette.requests import Request

from wan_server.errors import InvalidRequest, TooLarge

MAX_DEPTH: Final = 32


async def read_json(request: Request, limit: int) -> Any:
    """The body as JSON; an empty body is an empty object. Raises TooLarge or InvalidRequest."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return parse_json(bytes(body)) if body.strip() else {}


def parse_json(data: bytes) -> Any:
    """Strict JSON: no NaN, no Infinity, no lone surrogates, at most `MAX_DEPTH` deep. Raises InvalidRequest."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
        if b"\\ud" in data.lower():  # an escaped half of a character can be read but never written again
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidRequest(f"body: must be at most {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise InvalidRequest(f"body: is not valid JSON ({_reason(error)})") from None
    _check_depth(value, MAX_DEPTH)
    return value


def _check_depth(value: Any, levels: int) -> None:
    if not isinstance(value, dict | list):
        return
    if levels == 0:
        raise InvalidRequest(f"body: must be at most {MAX_DEPTH} levels deep")
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(item, levels - 1)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large")
    return number


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeError):
        return "the text is not UTF-8"
    return str(error)[:200]


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"body: must be at most {limit} bytes; upload files with POST /files instead of inlining them")
