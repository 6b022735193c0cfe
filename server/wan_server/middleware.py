"""What happens to every request before it meets a route: forgiving paths, a cap on JSON bodies, CORS."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from wan_server.envelope import problem
from wan_server.errors import InvalidRequest
from wan_server.settings import Settings

ALLOWED_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE")
ALLOWED_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "X-Client-Source",
    "X-API-Version",
    "Idempotency-Key",
    "Range",
    "If-Range",
    "If-None-Match",
    "Cache-Control",
    "Last-Event-ID",
)
EXPOSED_HEADERS: Final = (
    "Content-Range",
    "Accept-Ranges",
    "Content-Length",
    "Content-Disposition",
    "ETag",
    "Retry-After",
)
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


def install_middleware(app: FastAPI, settings: Settings) -> None:
    """Add the layers; CORS is outermost, so that browsers can read errors too."""
    app.add_middleware(RequestGuard)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=ALLOWED_METHODS,
        allow_headers=ALLOWED_HEADERS,
        expose_headers=EXPOSED_HEADERS,
        max_age=86400,
    )


def normalise_path(path: str) -> str:
    """`//v1/apps/run/` as `/apps/run`: clients join URLs by plain concatenation, old ones put a version first."""
    path = re.sub(r"/{2,}", "/", path)
    path = path.removeprefix("/v1") if path.startswith("/v1/") else path
    return path.rstrip("/") or "/"


@dataclass(frozen=True, slots=True)
class RequestGuard:
    """Tolerates sloppy paths; refuses a Host header that could not be part of a link."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if host and not _HOST.fullmatch(host):
            await problem(InvalidRequest("Host: is not a host name"))(scope, receive, send)
            return
        path = normalise_path(scope["path"])
        await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, send)
