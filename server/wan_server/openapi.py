"""The OpenAPI document: the routes as FastAPI knows them, with the schemas that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from wan_server.output_schema import AppOutput
from wan_server.routes.common import ListRequest
from wan_server.routes.docs import ref
from wan_server.routes.files import CreateFiles
from wan_server.schema import GenerateInput, RunRequest, TextInput

Json = dict[str, Any]

_BODIES: Final[tuple[type[BaseModel], ...]] = (
    RunRequest,
    GenerateInput,
    TextInput,
    CreateFiles,
    ListRequest,
    AppOutput,
)
#: paths that need no key
_OPEN: Final = ("/healthz", "/readyz", "/app/files/", "/files/{file_id}/content")

STRING: Final[Json] = {"type": "string"}
INTEGER: Final[Json] = {"type": "integer"}
NUMBER: Final[Json] = {"type": "number"}
BOOLEAN: Final[Json] = {"type": "boolean"}
TIME: Final[Json] = {"type": "string", "format": "date-time"}
ANYTHING: Final[Json] = {}


def optional(schema: Json) -> Json:
    """The schema or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def many(schema: Json) -> Json:
    """A list of the schema."""
    return {"type": "array", "items": schema}


def record(**fields: Json) -> Json:
    """An object with these fields and possibly more."""
    return {"type": "object", "required": sorted(fields), "properties": fields}


def page_of(schema: str) -> Json:
    """The CursorListResponse."""
    return record(
        items=many(ref(schema)),
        next_cursor=STRING,
        prev_cursor=STRING,
        has_next=BOOLEAN,
        has_previous=BOOLEAN,
        items_per_page=INTEGER,
    )


_STATUS: Final[Json] = {
    "type": "integer",
    "minimum": 0,
    "maximum": 12,
    "description": "1 received, 2 queued, 3 dispatched, 4 preparing, 5 serving, 6 setting_up, 7 running, "
    "8 cancelling, 9 uploading, 10 completed, 11 failed, 12 cancelled",
}
_BASE: Final[dict[str, Json]] = {"id": STRING, "short_id": STRING, "created_at": TIME, "updated_at": TIME}
_SCHEMAS: Final[dict[str, Json]] = {
    "Problem": record(
        type=STRING,
        title=STRING,
        status=INTEGER,
        detail={"type": "string", "description": "Names the field and the limit."},
        success=BOOLEAN,
        error=record(code=STRING, message=STRING),
    ),
    "TaskEvent": record(id=STRING, created_at=TIME, event_time=TIME, task_id=STRING, status=_STATUS),
    "TaskLog": record(id=STRING, created_at=TIME, updated_at=TIME, task_id=STRING, log_type=INTEGER, content=STRING),
    "TaskStatus": record(id=STRING, status=_STATUS, status_text=STRING, progress=INTEGER, updated_at=TIME),
    "TaskResult": record(**_BASE, status=_STATUS, status_text=STRING, output=optional(ref("AppOutput"))),
    "TaskLogs": record(task_id=STRING, status=_STATUS, events=many(ref("TaskEvent")), logs=many(ref("TaskLog"))),
    "TaskTimings": record(
        task_id=STRING,
        status=_STATUS,
        total_duration=STRING,
        total_duration_ms=INTEGER,
        groups=many(record(label=STRING, duration_ms=INTEGER)),
        events=many(record(status=STRING, timestamp=TIME, duration_ms=INTEGER)),
    ),
    "Task": record(
        **_BASE,
        status=_STATUS,
        status_text=STRING,
        progress={"type": "integer", "minimum": 0, "maximum": 100},
        app_id=STRING,
        app_version_id=STRING,
        function=STRING,
        infra=STRING,
        workers=many(STRING),
        input={"type": "object"},
        output=optional(ref("AppOutput")),
        error=optional(STRING),
        events=many(ref("TaskEvent")),
        logs=many(ref("TaskLog")),
        worker_id=optional(STRING),
        webhook=optional(STRING),
        run_at=optional(TIME),
        session_id=optional(STRING),
        session_timeout=optional(INTEGER),
    ),
    "TaskPage": page_of("Task"),
    "TaskFiles": many(
        record(
            id=STRING,
            created_at=TIME,
            role={"enum": ["input", "output"]},
            uri=STRING,
            filename=STRING,
            content_type=STRING,
            size=INTEGER,
        )
    ),
    "DeletedFiles": record(deleted=many(STRING), skipped=many(record(id=STRING, reason=STRING))),
    "File": record(
        **_BASE,
        path=STRING,
        upload_url={"type": "string", "description": "PUT the bytes here; empty once they are stored."},
        uri=STRING,
        content_type=STRING,
        size=INTEGER,
        filename=STRING,
        metadata=optional({"type": "object"}),
    ),
    "Files": many(ref("File")),
    "FilePage": page_of("File"),
    "AppVersion": record(
        **_BASE,
        input_schema={"type": "object"},
        output_schema={"type": "object"},
        functions={"type": "object"},
        default_function=STRING,
    ),
    "App": record(
        **_BASE,
        namespace=STRING,
        name=STRING,
        title=STRING,
        description=STRING,
        category=STRING,
        tags=many(STRING),
        version_id=STRING,
        version=ref("AppVersion"),
        status=STRING,
    ),
    "AppPage": page_of("App"),
    "Session": record(
        **_BASE, status=STRING, expires_at=TIME, call_count=INTEGER, idle_timeout=INTEGER, task_id=STRING
    ),
    "Sessions": many(ref("Session")),
}


def documented(app: FastAPI) -> Callable[[], Json]:
    """The function that FastAPI calls for its document."""

    def build() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    return build


def _build(app: FastAPI) -> Json:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    components["schemas"] = _body_schemas() | _SCHEMAS
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["security"] = [] if path.startswith(_OPEN) else [{"key": []}]
    return document


def _body_schemas() -> dict[str, Json]:
    _, document = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
    )
    schemas = document["$defs"]
    schemas["RunRequest"]["properties"]["input"] = {"anyOf": [ref("GenerateInput"), ref("TextInput"), {"type": "null"}]}
    return schemas
