"""Times on the wire: RFC 3339, UTC, microseconds, as the hosted service writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(seconds: float | None) -> str | None:
    """Epoch seconds as `2026-09-15T17:27:55.308496Z`; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
