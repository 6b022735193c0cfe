"""`/healthz`: the process is up. `/readyz`: a worker takes jobs. Neither needs a key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from wan_server.errors import Unavailable
from wan_server.routes.common import Svc
from wan_server.routes.docs import problem_answer
from wan_server.tables import WorkerRow

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> JSONResponse:
    """The front end answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", responses={503: problem_answer(503)})
def readyz(request: Request, svc: Svc) -> JSONResponse:
    """200 when a worker has loaded its model and takes jobs."""
    rows = svc.queue.live_workers()
    ready = [row for row in rows if row.state == "ready"]
    if not ready or svc.draining.is_set():
        trouble = request.app.state.worker_trouble()
        raise Unavailable("the server is shutting down" if svc.draining.is_set() else trouble or _why_not(rows), 2)
    workers = [
        {"id": row.executor_id, "model": row.model, "models": row.models, "device": row.device, "job": row.job}
        for row in ready
    ]
    return JSONResponse({"status": "ready", "workers": workers})


def _why_not(rows: list[WorkerRow]) -> str:
    if not rows:
        return "no worker is running"
    return "; ".join(f"worker {row.executor_id} is {row.state} (model {row.model})" for row in rows)
