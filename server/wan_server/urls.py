"""Checks of URLs that callers give us to call later, as far as they can be made without looking anything up."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from wan_server.errors import InvalidInput

MAX_LENGTH = 4096


def check_url(url: str, field: str, *, allow_private: bool) -> None:
    """Raises InvalidInput unless it is an http(s) URL of a host that may be public.

    Names are resolved, and then checked again, by whoever makes the connection.
    """
    if len(url) > MAX_LENGTH:
        raise InvalidInput(f"{field}: must have at most {MAX_LENGTH} characters (got {len(url)})")
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or not _is_plain(url):
        raise InvalidInput(f"{field}: must be an http(s) URL (got {shorten(url)})")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(f"{field}: must not carry a user name or password")
    if not allow_private and is_private_name(parts.hostname):
        raise InvalidInput(f"{field}: must not be a private or local address (got {shorten(parts.hostname)})")


def is_private_name(host: str) -> bool:
    """Whether the host is written as an address of this machine or of a private network."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ip_address(host).is_global
    except ValueError:
        return False


def host_of(url: str) -> str:
    """Host and port, lower-case; empty for a path."""
    parts = _split(url)
    return "" if parts is None else parts.netloc.lower()


def shorten(text: str, limit: int = 60) -> str:
    """The text in quotes, cut to a length that fits into a message."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def _is_plain(url: str) -> bool:
    return url.isprintable() and not any(letter.isspace() for letter in url)


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is not one
    except ValueError:
        return None
    return parts
