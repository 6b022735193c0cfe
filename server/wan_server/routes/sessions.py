"""`/sessions`: read from the tasks that name them. Workers keep no state, so a session is only a label."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wan_server.apps import app_id, ownership, version_id
from wan_server.clock import timestamp
from wan_server.envelope import reply
from wan_server.errors import SessionNotFound
from wan_server.ids import short_id
from wan_server.job import JobState
from wan_server.routes.common import Svc, get_principal
from wan_server.routes.docs import answers
from wan_server.services import Services
from wan_server.submit import DEFAULT_SESSION_TIMEOUT_S

Json = dict[str, Any]

router = APIRouter(prefix="/sessions", tags=["sessions"], dependencies=[Depends(get_principal)])

#: tasks that are looked at, newest first
RECENT: Final = 200


@router.get("", responses=answers("Sessions"))
def list_sessions(request: Request, svc: Svc) -> JSONResponse:
    """Sessions of recent tasks."""
    return reply(request, [_dto(svc, tasks) for tasks in _sessions(svc).values()])


@router.get("/{session_id}", responses=answers("Session", 404))
def get_session(request: Request, svc: Svc, session_id: str) -> JSONResponse:
    """One session."""
    return reply(request, _dto(svc, _tasks_of(svc, session_id)))


@router.post("/{session_id}/keepalive", responses=answers("Session", 404))
def keep_alive(request: Request, svc: Svc, session_id: str) -> JSONResponse:
    """Nothing to keep: answers with the session."""
    return reply(request, _dto(svc, _tasks_of(svc, session_id)))


@router.delete("/{session_id}", status_code=204, response_class=Response, responses=answers(None, 404))
def end_session(svc: Svc, session_id: str) -> Response:
    """Nothing to end: its tasks stay."""
    _tasks_of(svc, session_id)
    return Response(status_code=204)


def _sessions(svc: Services) -> dict[str, list[JobState]]:
    found: dict[str, list[JobState]] = {}
    for state in sorted(svc.queue.list(RECENT).items, key=lambda state: -state.created_at):
        if session_id := state.job.options.get("session_id"):
            found.setdefault(session_id, []).append(state)
    return found


def _tasks_of(svc: Services, session_id: str) -> list[JobState]:
    tasks = _sessions(svc).get(session_id)
    if not tasks:
        raise SessionNotFound(f"no recent task belongs to a session {session_id[:40]!r}")
    return tasks


def _dto(svc: Services, tasks: list[JobState]) -> Json:
    newest, oldest = tasks[0], tasks[-1]
    idle_s = oldest.job.options.get("session_timeout") or DEFAULT_SESSION_TIMEOUT_S
    session_id = newest.job.options["session_id"]
    return {
        "id": session_id,
        "short_id": short_id(session_id),
        "created_at": timestamp(oldest.created_at),
        "updated_at": timestamp(newest.updated_at),
        **ownership("private"),
        "worker_id": newest.worker_id or "",
        "app_id": app_id(newest.job.app),
        "app_version_id": version_id(newest.job.app),
        "status": "active",
        "expires_at": timestamp(svc.submitter.clock() + idle_s),
        "ended_at": None,
        "task_id": newest.job.id,
        "call_count": len(tasks),
        "last_call_at": timestamp(newest.created_at),
        "idle_timeout": idle_s,
    }
