"""Live updates of one task, as NDJSON lines or server-sent events.

What the clients need (each rule was found with the real ones): the first line is the whole task as it stands; a real
line comes at least every ten seconds, queueing included, because heartbeats count as silence; the last line is the
whole task, bare; and a stream never ends before that line, except at a shutdown.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any, Final

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wan_server.errors import NotFound
from wan_server.job import JobState
from wan_server.tasks import status_dto, task_dto

Json = dict[str, Any]

NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
HEADERS: Final = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
#: this client asks for the task and reconnects after a clean end, and only after a clean end
RECONNECTS_AFTER_EOF: Final = "inference-sdk-py/"


@dataclass(frozen=True, slots=True)
class Pace:
    """The clock that streams and waits go by; tests bring their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often to look at the task, and how long to be silent at most (seconds)."""

    poll_s: float
    keepalive_s: float


class StreamCut(Exception):
    """The stream ends before the task does."""


async def updates(
    first: JobState, read: Callable[[], Awaitable[JobState]], rhythm: Rhythm, pace: Pace, draining: Event
) -> AsyncIterator[Json]:
    """Messages about one task until it has ended: snapshot, partials, snapshot.

    Raises StreamCut when the server shuts down or the task is deleted.
    """
    state, spoke_at = first, pace.now()
    yield task_dto(state)
    while not state.status.is_terminal:
        await pace.sleep(rhythm.poll_s)
        if draining.is_set():
            raise StreamCut
        before, state = state, await _read(read)
        fields = changed_fields(before, state)
        if state.status.is_terminal:
            yield task_dto(state)
        elif fields or pace.now() - spoke_at >= rhythm.keepalive_s:
            spoke_at = pace.now()
            yield partial(state, fields)


def partial(state: JobState, fields: list[str]) -> Json:
    """What may have changed; always with `id` and `status`, which clients do not remember."""
    return {"data": _moving_part(state), "fields": fields or ["updated_at"]}


def changed_fields(before: JobState, after: JobState) -> list[str]:
    """Names of the fields of a partial that differ."""
    old, new = _moving_part(before), _moving_part(after)
    return [name for name, value in new.items() if name != "updated_at" and old[name] != value]


def media_type_for(accept: str) -> str:
    """NDJSON unless the client asks for server-sent events."""
    return SSE if SSE in accept.lower() else NDJSON


def encode(message: Json, media_type: str) -> bytes:
    """One line, or one event."""
    line = json.dumps(message, separators=(",", ":"), allow_nan=False)
    return (f"data: {line}\n\n" if media_type == SSE else f"{line}\n").encode()


class TaskStream(Response):
    """Sends messages as they come; stops when the client goes away.

    When the messages are cut short, a client that reconnects after a clean end gets one; for any other the connection
    is dropped in the middle, which is the only thing it takes for a failure.
    """

    def __init__(self, messages: AsyncIterator[Json], request_headers: Mapping[str, str]) -> None:
        self.messages = messages
        self.media_type = media_type_for(request_headers.get("accept", ""))
        self.clean_cut = request_headers.get("user-agent", "").startswith(RECONNECTS_AFTER_EOF)
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
            if await self._send_all(send) or self.clean_cut:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            group.cancel_scope.cancel()

    async def _send_all(self, send: Send) -> bool:
        """False when the messages were cut short."""
        assert self.media_type is not None
        try:
            async for message in self.messages:
                body = encode(message, self.media_type)
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except StreamCut:
            return False
        return True


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _read(read: Callable[[], Awaitable[JobState]]) -> JobState:
    try:
        return await read()
    except NotFound:
        raise StreamCut from None


def _moving_part(state: JobState) -> Json:
    dto = task_dto(state)
    kept = ("session_id", "worker_id", "events", "logs")
    return status_dto(state) | {name: dto[name] for name in kept}
