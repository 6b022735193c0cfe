"""HTTP to addresses that users name: downloads and webhooks.

Connections are made by `pinned.py`, which keeps them out of private networks and ends them in time. A redirect is
a new request with new checks. Proxies, cookies and logins are not used. Ports below 1024 other than 80 and 443
belong to other protocols and are refused.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpcore
import httpx

from wan_server.pinned import (
    SYSTEM,
    Deadline,
    FetchFailed,
    FetchRefused,
    Network,
    PinnedBackend,
    checked_addresses,
)

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
MB = 1024 * 1024
USER_AGENT = "wanbox"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched. `content_type` is what the server claims, in lower case and without parameters."""

    content_type: str
    #: bytes
    size: int
    #: after redirects
    final_url: str


def guard_url(url: str, allow_private: bool = False, *, network: Network = SYSTEM) -> None:
    """Raises FetchRefused unless `url` may be called: http(s), no login in it, a usual port, public addresses."""
    target = _parse(url)
    checked_addresses(target.raw_host.decode(), _port(target), network, allow_private)


def fetch(
    url: str,
    dest: Path,
    *,
    max_bytes: int,
    timeout_s: float,
    allow_private: bool = False,
    network: Network = SYSTEM,
    beat: Callable[[], None] | None = None,
) -> Fetched:
    """Downloads `url` into `dest`, which appears only when it is complete. Raises FetchRefused, FetchFailed.

    `beat` is called about once a second and may raise to stop the download.
    """
    deadline = Deadline(timeout_s, beat)
    with _translated(), _pool(PinnedBackend(network, allow_private, deadline)) as pool:
        for _ in range(MAX_REDIRECTS + 1):
            target = _parse(url)
            with _request(pool, "GET", target, {"Accept-Encoding": "identity"}) as response:
                if response.status not in REDIRECTS:
                    size = _save(response, dest, max_bytes)
                    return Fetched(_content_type(response), size, str(target))
                url = _redirected(target, response)
    raise FetchRefused(f"more than {MAX_REDIRECTS} redirects")


def encode_json(payload: Any) -> bytes:
    """The bytes that `post_json` sends, for signing."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def post_json(
    url: str,
    payload: Any,
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    allow_private: bool = False,
    network: Network = SYSTEM,
) -> int:
    """POSTs JSON and returns the status of the answer; redirects are answers like others.

    Raises FetchRefused when the URL may not be called, FetchFailed when there is no answer.
    """
    target, body = _parse(url), encode_json(payload)
    backend = PinnedBackend(network, allow_private, Deadline(timeout_s))
    sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    with _translated(), _pool(backend) as pool, _request(pool, "POST", target, sent, body) as response:
        return response.status


def _parse(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise FetchRefused("the URL cannot be read") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise FetchRefused("only http and https URLs are fetched")
    if target.userinfo:
        raise FetchRefused("the URL must not carry a user name or password")
    if _port(target) < 1024 and _port(target) not in (80, 443):
        raise FetchRefused(f"port {_port(target)} is not allowed: use 80, 443 or one from 1024")
    return target


def _port(target: httpx.URL) -> int:
    return target.port if target.port is not None else {"http": 80, "https": 443}[target.scheme]


def _pool(backend: PinnedBackend) -> httpcore.ConnectionPool:
    return httpcore.ConnectionPool(ssl_context=backend.network.ssl_context, network_backend=backend)


@contextmanager
def _request(
    pool: httpcore.ConnectionPool, method: str, target: httpx.URL, headers: Mapping[str, str], body: bytes = b""
) -> Iterator[httpcore.Response]:
    url = httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=_port(target), target=target.raw_path)
    named = {"Host": target.netloc, "User-Agent": USER_AGENT, "Accept": "*/*", **headers}
    with pool.stream(method, url, headers=list(named.items()), content=body or None) as response:
        yield response


def _redirected(target: httpx.URL, response: httpcore.Response) -> str:
    location = _header(response, b"location")
    if not location:
        raise FetchFailed(f"the server answered {response.status} without a new address")
    try:
        return str(target.join(location))
    except httpx.InvalidURL:
        raise FetchRefused("the server redirects to a URL that cannot be read") from None


def _save(response: httpcore.Response, dest: Path, max_bytes: int) -> int:
    if response.status != 200:
        raise FetchFailed(f"the server answered {response.status}")
    if _header(response, b"content-encoding") not in ("", "identity"):
        raise FetchRefused("the server sends the file compressed")
    if int(_header(response, b"content-length") or 0) > max_bytes:
        raise _too_large(max_bytes)
    part = dest.with_name(f".{dest.name}.part")
    try:
        size = _write(response, part, max_bytes)
        part.replace(dest)
    finally:
        part.unlink(missing_ok=True)
    return size


def _write(response: httpcore.Response, part: Path, max_bytes: int) -> int:
    size = 0
    with part.open("wb") as file:
        for chunk in response.iter_stream():
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            file.write(chunk)
    return size


def _too_large(max_bytes: int) -> FetchRefused:
    limit = f"{max_bytes // MB} MB" if max_bytes >= MB else f"{max_bytes} bytes"
    return FetchRefused(f"the file has more than {limit}")


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1").strip() for key, value in response.headers if key.lower() == name), "")


def _content_type(response: httpcore.Response) -> str:
    claimed = _header(response, b"content-type").split(";")[0].strip().lower()
    return claimed or "application/octet-stream"


@contextmanager
def _translated() -> Iterator[None]:
    """Network errors become FetchFailed, told without addresses of ours."""
    try:
        yield
    except httpcore.TimeoutException:
        raise FetchFailed("the server takes too long") from None
    except httpcore.ConnectError as error:
        secure = any(isinstance(reason, ssl.SSLError) for reason in error.args)
        raise FetchFailed("no secure connection to the server" if secure else "no connection to the server") from None
    except (httpcore.NetworkError, httpcore.ProtocolError):
        raise FetchFailed("the server's answer is broken or incomplete") from None
