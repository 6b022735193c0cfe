"""`/tasks`: read, follow, cancel, list and delete tasks and their files."""

from __future__ import annotations

from typing import Annotated, Any, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wan_server.clock import timestamp
from wan_server.envelope import reply
from wan_server.errors import InvalidRequest, InvalidTransition, NotFound
from wan_server.files import FileRecord
from wan_server.job import JobState
from wan_server.routes.common import BaseUrl, Body, ListRequest, Svc, get_principal, is_descending, page, parse_list
from wan_server.routes.docs import answers, body
from wan_server.routes.filters import Fields, compile_filters, read_instant, read_status, read_text
from wan_server.services import Services
from wan_server.status import TaskStatus
from wan_server.stream import NDJSON, SSE, TaskStream, updates
from wan_server.tasks import logs_dto, result_dto, status_dto, task_dto, timings_dto

Json = dict[str, Any]

router = APIRouter(prefix="/tasks", tags=["tasks"], dependencies=[Depends(get_principal)])

LIST_LIMIT: Final = 200
#: pages that a filtered list reads at most before it answers with what it has
SIFT_ROUNDS: Final = 20
FILTERS: Final[Fields] = {"status": read_status, "app": read_text, "created_at": read_instant}
Role = Annotated[str | None, Query(description="`input` or `output`; both when absent.")]


@router.post("/list", responses=answers("TaskPage"), openapi_extra=body("ListRequest", required=False))
async def list_tasks(request: Request, svc: Svc, body: Body) -> JSONResponse:
    """A page of tasks by submission time."""
    return reply(request, await run_sync(_list, svc, parse_list(body)))


@router.get("/{task_id}", responses=answers("Task", 404))
def get_task(request: Request, svc: Svc, task_id: str) -> JSONResponse:
    """The whole task."""
    return reply(request, task_dto(svc.queue.get(task_id)))


@router.get("/{task_id}/status", responses=answers("TaskStatus", 404))
def get_status(request: Request, svc: Svc, task_id: str) -> JSONResponse:
    """Only the status, for pollers."""
    return reply(request, status_dto(svc.queue.get(task_id)))


@router.get("/{task_id}/logs", responses=answers("TaskLogs", 404))
def get_logs(request: Request, svc: Svc, task_id: str) -> JSONResponse:
    """Transitions and readable lines."""
    return reply(request, logs_dto(svc.queue.get(task_id)))


@router.get("/{task_id}/timings", responses=answers("TaskTimings", 404))
def get_timings(request: Request, svc: Svc, task_id: str) -> JSONResponse:
    """How long the task stayed in each state."""
    return reply(request, timings_dto(svc.queue.get(task_id), svc.queue.clock()))


@router.get("/{task_id}/stream", response_class=Response, responses=answers(None, 404, media=(NDJSON, SSE)))
async def stream_task(request: Request, svc: Svc, task_id: str) -> TaskStream:
    """The task as it changes, until it has ended: NDJSON, or server-sent events when `Accept` asks for them."""

    async def read() -> JobState:
        return await run_sync(svc.queue.get, task_id)

    messages = updates(await read(), read, svc.rhythm, svc.pace, svc.draining)
    return TaskStream(messages, request.headers)


@router.post("/{task_id}/cancel", responses=answers("TaskResult", 404, 409))
def cancel_task(request: Request, svc: Svc, task_id: str) -> JSONResponse:
    """Stop a task: at once while it waits, within a denoise step while it runs."""
    return reply(request, result_dto(svc.queue.cancel(task_id)) | {"cancelled": True})


@router.delete("/{task_id}", status_code=204, response_class=Response, responses=answers(None, 404, 409))
def delete_task(svc: Svc, task_id: str, files: bool = False) -> Response:
    """Forget a finished task; with `files=true` its files too."""
    state = _finished(svc, task_id)
    if files:
        _delete_files(svc, state, None)
    svc.queue.delete(task_id)
    return Response(status_code=204)


@router.get("/{task_id}/files", responses=answers("TaskFiles", 400, 404))
def get_files(request: Request, svc: Svc, base_url: BaseUrl, task_id: str, role: Role = None) -> JSONResponse:
    """Files that the task used and made."""
    found = _files_of(svc, svc.queue.get(task_id), role)
    return reply(request, [_task_file(svc, base_url, record, side) for side, record in found])


@router.delete("/{task_id}/files", responses=answers("DeletedFiles", 400, 404, 409))
def delete_files(request: Request, svc: Svc, task_id: str, role: Role = None) -> JSONResponse:
    """Delete a finished task's files and keep the task."""
    deleted, skipped = _delete_files(svc, _finished(svc, task_id), role)
    return reply(request, {"deleted": deleted, "skipped": skipped})


def _list(svc: Services, wish: ListRequest) -> Json:
    keep = compile_filters(wish.filters, FILTERS)
    order = "desc" if is_descending(wish.sort) else "asc"
    limit, status = min(wish.limit or 20, LIST_LIMIT), _only_status(wish)
    items: list[Json] = []
    cursor = wish.cursor or None
    for _ in range(SIFT_ROUNDS):
        found = svc.queue.list(limit - len(items), cursor, status=status, order=order)
        items += [task_dto(state) for state in found.items if keep(_filter_values(state))]
        cursor = found.next_cursor
        if cursor is None or len(items) == limit:
            break
    return page(items, cursor, limit, has_previous=bool(wish.cursor))


def _only_status(wish: ListRequest) -> TaskStatus | None:
    """The one status asked for, which the queue can look up faster than we can sift."""
    wanted = [read_status(item.value) for item in wish.filters or () if (item.field, item.operator) == ("status", "eq")]
    return wanted[0] if len(wanted) == 1 else None


def _filter_values(state: JobState) -> Json:
    return {"status": state.status, "app": state.job.app, "created_at": state.created_at}


def _finished(svc: Services, task_id: str) -> JobState:
    state = svc.queue.get(task_id)
    if not state.status.is_terminal:
        raise InvalidTransition(f"task {task_id} is {state.status.text}: cancel it first")
    return state


def _files_of(svc: Services, state: JobState, role: str | None) -> list[tuple[str, FileRecord]]:
    if role not in (None, "input", "output"):
        raise InvalidRequest(f"role: must be input or output (got {role[:40]!r})")
    given = [record for file_id in state.job.files.values() if (record := _find(svc, file_id))]
    made = [(record.role or "output", record) for record in svc.files.for_task(state.job.id)]
    return [(side, record) for side, record in [*(("input", r) for r in given), *made] if role in (None, side)]


def _find(svc: Services, file_id: str) -> FileRecord | None:
    try:
        return svc.files.get(file_id)
    except NotFound:
        return None


def _delete_files(svc: Services, state: JobState, role: str | None) -> tuple[list[str], list[str]]:
    """Ids of the deleted files, and of those that other tasks still need."""
    ids = list(dict.fromkeys(record.id for _, record in _files_of(svc, state, role)))
    needed = svc.queue.files_in_use()
    deleted = [file_id for file_id in ids if file_id not in needed]
    for file_id in deleted:
        svc.files.delete(file_id)
    return deleted, [file_id for file_id in ids if file_id in needed]


def _task_file(svc: Services, base_url: str, record: FileRecord, role: str) -> Json:
    return {
        "id": record.id,
        "created_at": timestamp(record.created_at),
        "role": role,
        "uri": svc.files.uri(record, base_url),
        "filename": record.filename,
        "content_type": record.served_type,
        "size": record.size,
    }
