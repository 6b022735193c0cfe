"""HTTP ranges and validators of RFC 9110, for one range at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from wan_server.errors import WanboxError

_ONE_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE | re.ASCII)


class RangeNotSatisfiable(WanboxError):
    """The range lies outside of the file."""

    status = 416
    code = "invalid_request"
    title = "Range not satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(f"Range: lies outside of the file, which has {size} bytes")
        self.size = size

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Range": f"bytes */{self.size}"}


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes to send, and whether they are asked for as a part."""

    start: int
    length: int
    is_part: bool


def choose_span(headers: Mapping[str, str], etag: str, size: int) -> Span:
    """What the request headers ask for. Several ranges, and forms we do not know, give the whole file.

    Raises RangeNotSatisfiable.
    """
    whole = Span(0, size, is_part=False)
    unchanged = headers.get("if-range", etag).strip() == etag
    found = _ONE_RANGE.fullmatch(headers.get("range", "").strip())
    if not found or not unchanged or not (found[1] or found[2]):
        return whole
    if not found[1]:  # the last N bytes
        wanted = min(int(found[2]), size)
        return _part(size - wanted, size, size)
    start, end = int(found[1]), int(found[2]) + 1 if found[2] else size
    return whole if end <= start < size else _part(start, min(end, size), size)


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client already has it (weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or "*" in tags


def _part(start: int, end: int, size: int) -> Span:
    if start >= end:
        raise RangeNotSatisfiable(size)
    return Span(start, end - start, is_part=True)
