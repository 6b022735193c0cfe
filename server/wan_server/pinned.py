"""Connections to hosts that users name, without a way into our own network.

The host name is resolved, each address is checked, and the socket goes to a checked address, so a name cannot
mean something else between the check and the connection. TLS still verifies the host name. One deadline covers
everything, however slowly the other side drips; only the resolver keeps its own timeout.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import httpcore

from wan_server.errors import InvalidInput

MAX_ADDRESSES = 4  # tried one after the other
#: seconds of silence on a socket after which somebody may have changed his mind
READ_SLICE_S = 1.0
NAT64 = IPv6Network("64:ff9b::/96")


class FetchRefused(InvalidInput):
    """This server does not fetch that."""


class FetchFailed(FetchRefused):
    """The other side did not answer as it should; another try may help."""


def resolve_host(host: str, port: int) -> list[str]:
    """Addresses of a host name, as the system resolves it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchFailed(f"the host {host} is not known") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Network:
    """How names become addresses and addresses become sockets; tests put their own in."""

    resolve: Callable[[str, int], list[str]] = resolve_host
    backend: httpcore.NetworkBackend = field(default_factory=httpcore.SyncBackend)
    ssl_context: ssl.SSLContext | None = None


SYSTEM = Network()


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet, also where IPv6 wraps an IPv4 address."""
    ip = ip_address(address)
    inner = _wrapped(ip)
    if inner is not None:
        return is_public(str(inner))
    site_local = isinstance(ip, IPv6Address) and ip.is_site_local
    local = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_unspecified or site_local
    return ip.is_global and not (local or ip.is_multicast or ip.is_reserved)


def _wrapped(ip: IPv4Address | IPv6Address) -> IPv4Address | None:
    if isinstance(ip, IPv4Address):
        return None
    if ip in NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def checked_addresses(host: str, port: int, network: Network, allow_private: bool) -> list[str]:
    """Addresses of a host; raises FetchRefused when one of them is not public."""
    addresses = network.resolve(host, port)
    if not allow_private and not all(map(is_public, addresses)):
        raise FetchRefused(f"the host {host} is at a private or local address")
    return addresses


class Deadline:
    """The moment at which a whole exchange must be over. `beat` is called about once a second and may raise."""

    def __init__(self, timeout_s: float, beat: Callable[[], None] | None = None) -> None:
        self._at = time.monotonic() + timeout_s
        self._beat = beat or (lambda: None)

    def left(self, timeout: float | None = None) -> float:
        """Seconds left, at most `timeout`; raises httpcore.ReadTimeout when there are none."""
        self._beat()
        left = self._at - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout
        return left if timeout is None else min(left, timeout)


class PinnedBackend(httpcore.NetworkBackend):
    """Opens sockets to checked addresses only, and ends them at the deadline."""

    def __init__(self, network: Network, allow_private: bool, deadline: Deadline) -> None:
        self.network, self._allow_private, self._deadline = network, allow_private, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = checked_addresses(host, port, self.network, self._allow_private)[:MAX_ADDRESSES]
        for position, address in enumerate(addresses, 1):
            share = self._deadline.left(timeout) / (len(addresses) - position + 1)
            try:
                stream = self.network.backend.connect_tcp(address, port, share, local_address, socket_options)
                return TimedStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(addresses):
                    raise
        raise httpcore.ConnectError(f"no address for {host}")


class TimedStream(httpcore.NetworkStream):
    """A connection whose every operation ends at the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._stream.read(max_bytes, self._deadline.left(READ_SLICE_S))
            except httpcore.ReadTimeout:
                self._deadline.left()
                if until is not None and time.monotonic() > until:
                    raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secure = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return TimedStream(secure, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
