"""`/apps`: descriptions of apps, and running them."""

from __future__ import annotations

from typing import Annotated, Any, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from wan_server.appref import parse_ref
from wan_server.envelope import problem, reply
from wan_server.errors import InvalidRequest, Unavailable, WanboxError
from wan_server.job import JobState
from wan_server.routes.common import BaseUrl, Body, Caller, Svc, get_principal, page, parse_list
from wan_server.routes.docs import answers, body
from wan_server.services import Services
from wan_server.status import TaskStatus
from wan_server.submit import Submission
from wan_server.tasks import result_dto

Json = dict[str, Any]

router = APIRouter(tags=["apps"], dependencies=[Depends(get_principal)])

RUN_ANSWERS: Final = answers("TaskResult", 404, 409, 429, 503)
IdempotencyKey = Annotated[str | None, Header(description="The same key and body give the same task.")]


class TaskFailed(WanboxError):
    """The task failed."""

    status = 422
    code = "task_failed"
    title = "Task failed"


class TaskCancelled(TaskFailed):
    """The task was cancelled."""

    code = "task_cancelled"
    title = "Task cancelled"


@router.post("/apps/run", responses=RUN_ANSWERS, openapi_extra=body("RunRequest"))
async def run_app(
    request: Request, svc: Svc, caller: Caller, base_url: BaseUrl, sent: Body, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Enqueue a task and answer at once, or with `"wait": true` when it has ended."""
    submission = Submission(sent, base_url, caller, idempotency_key)
    return await _run(request, svc, submission, wait=_wants_to_wait(sent, default=False))


@router.post("/run", responses=RUN_ANSWERS, openapi_extra=body("RunRequest"))
async def run_and_wait(
    request: Request,
    svc: Svc,
    caller: Caller,
    base_url: BaseUrl,
    sent: Body,
    wait: Annotated[bool | None, Query()] = None,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """The older name of `/apps/run`; it waits for the end unless told not to."""
    submission = Submission(sent, base_url, caller, idempotency_key)
    wanted = _wants_to_wait(sent, default=True) if wait is None else wait
    return await _run(request, svc, submission, wait=wanted)


@router.post("/apps/list", responses=answers("AppPage"), openapi_extra=body("ListRequest", required=False))
async def list_apps(request: Request, svc: Svc, sent: Body) -> JSONResponse:
    """Every app, on one page."""
    wish = parse_list(sent)
    if wish.filters or wish.cursor:
        raise InvalidRequest("filters, cursor: the apps are few and listed as they are")
    items = [svc.catalog.dto(app) for app in svc.catalog.apps]
    return reply(request, page(items, None, wish.limit or len(items)))


@router.get("/apps/{namespace}/{name}", responses=answers("App", 404))
def get_app_by_name(request: Request, svc: Svc, namespace: str, name: str) -> JSONResponse:
    """An app by its name, with the schemas of its input and output."""
    ref = parse_ref(f"{namespace}/{name}")
    return reply(request, svc.catalog.dto(svc.catalog.find(ref), ref.function))


@router.get("/apps/{app_id}", responses=answers("App", 404))
def get_app(request: Request, svc: Svc, app_id: str) -> JSONResponse:
    """An app by its id."""
    return reply(request, svc.catalog.dto(svc.catalog.by_id(app_id)))


@router.get("/apps/{app_id}/versions/{version_id}", responses=answers("AppVersion", 404))
def get_version(request: Request, svc: Svc, app_id: str, version_id: str) -> JSONResponse:
    """A version of an app; whatever version is asked for, there is one."""
    return reply(request, svc.catalog.version_dto(svc.catalog.by_id(app_id)) | {"id": version_id})


def _wants_to_wait(sent: object, *, default: bool) -> bool:
    wish = sent.get("wait") if isinstance(sent, dict) else None
    return wish if isinstance(wish, bool) else default


async def _run(request: Request, svc: Services, submission: Submission, *, wait: bool) -> JSONResponse:
    state = await run_sync(svc.submitter.submit, submission)
    if not wait:
        return reply(request, _as_accepted(state))
    state = await _until_terminal(request, svc, state)
    result = result_dto(state)
    if state.status is TaskStatus.COMPLETED:
        return reply(request, result)
    failed = TaskCancelled() if state.status is TaskStatus.CANCELLED else TaskFailed(state.error)
    return problem(failed, data=result)


def _as_accepted(state: JobState) -> Json:
    """Always a status before any work: pollers only look closer when the status changes after this answer."""
    early = state.status if state.status in (TaskStatus.RECEIVED, TaskStatus.QUEUED) else TaskStatus.RECEIVED
    return result_dto(state) | {"status": int(early), "status_text": early.text, "output": None}


async def _until_terminal(request: Request, svc: Services, state: JobState) -> JobState:
    task_id = state.job.id
    while not state.status.is_terminal:
        await svc.pace.sleep(svc.settings.stream_poll_s)
        if svc.draining.is_set():
            raise Unavailable(f"the server restarts; task {task_id} goes on, GET /tasks/{task_id} has its result")
        if await request.is_disconnected():
            raise ClientDisconnect
        state = await run_sync(svc.queue.get, task_id)
    return state
