"""`/files`: slots, signed uploads, records; and `/app/files`: downloads by secret name."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Final
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from wan_server.clock import timestamp
from wan_server.envelope import describe, reply
from wan_server.errors import Conflict, InvalidInput, InvalidRequest, TooLarge
from wan_server.files import OCTETS, FileRecord, safe_name
from wan_server.ids import is_id, short_id
from wan_server.inputs import examine
from wan_server.ranges import Span, choose_span, etag_matches
from wan_server.routes.common import BaseUrl, Body, Svc, get_principal, page, parse_list
from wan_server.routes.docs import answers, body, problem_answer
from wan_server.services import Services

Json = dict[str, Any]

router = APIRouter(tags=["files"])
keyed = [Depends(get_principal)]

LIST_LIMIT: Final = 200


class FileSlot(BaseModel):
    """A file that is about to be uploaded. Only the size is checked; the content decides what it is."""

    model_config = ConfigDict(extra="ignore")

    filename: str | None = Field(None, max_length=1000)
    content_type: str | None = Field(None, max_length=200)
    size: int | None = Field(None, ge=0)


class CreateFiles(BaseModel):
    """Body of `POST /files`."""

    model_config = ConfigDict(extra="ignore")

    files: list[FileSlot] = Field(min_length=1, max_length=100)


@router.post("/files", dependencies=keyed, responses=answers("Files"), openapi_extra=body("CreateFiles"))
async def create_files(request: Request, svc: Svc, base_url: BaseUrl, sent: Body) -> JSONResponse:
    """Slots for uploads: PUT each file's bytes to its `upload_url`, then use its `uri`."""
    try:
        wish = CreateFiles.model_validate(sent)
    except ValidationError as error:
        raise InvalidInput(describe(error.errors(include_url=False), "body")) from None
    return reply(request, await run_sync(_create, svc, base_url, wish))


@router.post(
    "/files/list",
    dependencies=keyed,
    responses=answers("FilePage"),
    openapi_extra=body("ListRequest", required=False),
)
async def list_files(request: Request, svc: Svc, base_url: BaseUrl, sent: Body) -> JSONResponse:
    """A page of files, newest first."""
    wish = parse_list(sent)
    if wish.filters or wish.sort:
        raise InvalidRequest("filters, sort: files are only listed newest first")
    limit = min(wish.limit or 20, LIST_LIMIT)
    records = await run_sync(svc.files.list, limit + 1, _read_cursor(wish.cursor))
    following = _write_cursor(records[limit - 1]) if len(records) > limit else None
    items = [file_dto(svc, base_url, record) for record in records[:limit]]
    return reply(request, page(items, following, limit, has_previous=bool(wish.cursor)))


@router.get("/files/{file_id}", dependencies=keyed, responses=answers("File", 404))
def get_file(request: Request, svc: Svc, base_url: BaseUrl, file_id: str) -> JSONResponse:
    """The record of a file."""
    record = svc.files.get(file_id)
    if record.stored:
        examine(svc.files, record)
    return reply(request, file_dto(svc, base_url, svc.files.get(file_id)))


@router.delete(
    "/files/{file_id}", status_code=204, dependencies=keyed, response_class=Response, responses=answers(None, 404, 409)
)
def delete_file(svc: Svc, file_id: str) -> Response:
    """Delete a file that no waiting or running task needs."""
    if file_id in svc.queue.files_in_use():
        raise Conflict(f"file {file_id} is needed by a task that has not ended")
    svc.files.delete(file_id)
    return Response(status_code=204)


@router.put(
    "/files/{file_id}/content",
    responses=answers("File", 403, 404, 409),
    openapi_extra={"requestBody": {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def upload_file(
    request: Request,
    svc: Svc,
    base_url: BaseUrl,
    file_id: str,
    expires: Annotated[int, Query(ge=0, lt=2**53)],
    signature: Annotated[str, Query(max_length=128)],
) -> JSONResponse:
    """The bytes of a file, to the signed URL from `POST /files`. Needs no key."""
    svc.signer.check(file_id, expires, signature)
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > svc.files.max_bytes:
        raise TooLarge(f"file: must be at most {svc.files.max_bytes} bytes (got {declared})")
    record = await svc.files.receive(file_id, request.stream())
    await run_sync(examine, svc.files, record)
    return reply(request, file_dto(svc, base_url, await run_sync(svc.files.get, file_id)))


@router.get(
    "/app/files/{file_id}/{name}",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
        206: {"description": "A part.", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "Unchanged."},
        **{code: problem_answer(code) for code in (400, 404, 416, 422)},
    },
)
def download(request: Request, svc: Svc, file_id: str, name: str) -> Response:
    """A file by its secret name. Needs no key; takes one byte range."""
    record = svc.files.get(file_id)
    chunks = svc.files.read(file_id, 0, 0)  # refuses what was never uploaded
    headers = download_headers(record)
    if etag_matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers={k: headers[k] for k in ("ETag", "Cache-Control")})
    span = choose_span(request.headers, headers["ETag"], record.size)
    headers |= _length_headers(span, record.size)
    if request.method != "HEAD":
        chunks = svc.files.read(file_id, span.start, span.length)
    status = 206 if span.is_part else 200
    return StreamingResponse(chunks, status, headers, media_type=record.served_type)


router.add_api_route("/app/files/{file_id}/{name}", download, methods=["HEAD"], include_in_schema=False)


def download_headers(record: FileRecord) -> dict[str, str]:
    """Headers that do not depend on the range. The content never runs as a page of ours."""
    name = f"inline; filename=\"{safe_name(record.filename)}\"; filename*=UTF-8''{quote(record.filename, safe='')}"
    return {
        "ETag": f'"{record.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": name,
        "Cache-Control": "private, max-age=3600",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }


def file_dto(svc: Services, base_url: str, record: FileRecord) -> Json:
    """The FileDTO. `upload_url` is there as long as the bytes are not."""
    at = timestamp(record.created_at)
    content_type = record.served_type if record.stored else record.content_type
    upload = f"{base_url}/files/{record.id}/content?{svc.signer.query(record.id)}"
    return {
        "id": record.id,
        "short_id": short_id(record.id),
        "created_at": at,
        "updated_at": at,
        "deleted_at": None,
        "path": safe_name(record.filename),
        "remote_path": record.id,
        "upload_url": "" if record.stored else upload,
        "uri": svc.files.uri(record, base_url),
        "content_type": content_type,
        "size": record.size,
        "filename": record.filename,
        "category": record.role or "input",
        "rating": "unrated",
        "metadata": _metadata(record.probe),
    }


def _create(svc: Services, base_url: str, wish: CreateFiles) -> list[Json]:
    slots = [svc.files.create(slot.filename, slot.content_type, slot.size) for slot in wish.files]
    return [file_dto(svc, base_url, record) for record in slots]


def _metadata(probe: Json | None) -> Json | None:
    if probe is None:
        return None
    same = ("width", "height", "fps", "sample_rate", "channels", "codec", "format", "error")
    renamed = {"type": probe["kind"], "duration": probe["seconds"]}
    return renamed | {name: probe[name] for name in same}


def _length_headers(span: Span, size: int) -> dict[str, str]:
    headers = {"Content-Length": str(span.length)}
    if span.is_part:
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{size}"
    return headers


def _write_cursor(record: FileRecord) -> str:
    return base64.urlsafe_b64encode(json.dumps([record.created_at, record.id]).encode()).decode()


def _read_cursor(text: str | None) -> tuple[float, str] | None:
    if not text:
        return None
    try:
        at, last = json.loads(base64.urlsafe_b64decode(text.encode()))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise InvalidRequest("cursor: is not one that this server gave out") from None
    if not isinstance(at, float) or not isinstance(last, str) or not is_id(last):
        raise InvalidRequest("cursor: is not one that this server gave out")
    return at, last
