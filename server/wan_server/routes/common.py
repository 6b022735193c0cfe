"""What routes share: the services, the caller, the base of links, list requests."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from wan_server.auth import authenticate
from wan_server.body import read_json
from wan_server.envelope import describe
from wan_server.errors import InvalidInput, InvalidRequest
from wan_server.keys import Principal
from wan_server.services import Services

Json = dict[str, Any]


def get_services(request: Request) -> Services:
    return request.app.state.services


Svc = Annotated[Services, Depends(get_services)]


async def get_principal(request: Request, svc: Svc) -> Principal:
    """Raises Unauthorized."""
    header = request.headers.get("authorization")
    return await run_sync(authenticate, svc.settings, svc.keys, header)


Caller = Annotated[Principal, Depends(get_principal)]


def get_base_url(request: Request, svc: Svc) -> str:
    """How the client reaches us: as configured, or as it did."""
    if svc.settings.public_url:
        return str(svc.settings.public_url).rstrip("/")
    return f"{request.url.scheme}://{request.url.netloc}"


BaseUrl = Annotated[str, Depends(get_base_url)]


async def get_body(request: Request, svc: Svc, _caller: Caller) -> Any:
    """The JSON body, read only from callers with a key. Raises TooLarge, InvalidRequest."""
    return await read_json(request, svc.settings.max_request_bytes)


Body = Annotated[Any, Depends(get_body)]


class Filter(BaseModel):
    """A condition on one field."""

    model_config = ConfigDict(extra="ignore")

    field: str = Field(max_length=100)
    operator: str = Field("eq", max_length=20)
    value: Any = None


class Sort(BaseModel):
    """An order by one field."""

    model_config = ConfigDict(extra="ignore")

    field: str = Field("created_at", max_length=100)
    dir: str = Field("desc", max_length=10)


class Search(BaseModel):
    """A search by text, which is not possible here."""

    model_config = ConfigDict(extra="ignore")

    term: str | None = Field(None, max_length=1000)


class ListRequest(BaseModel):
    """Body of the list routes; fields of the hosted service that mean nothing here are ignored."""

    model_config = ConfigDict(extra="ignore")

    cursor: str | None = Field(None, max_length=500)
    limit: int | None = Field(None, ge=0, le=1000)
    filters: list[Filter] | None = Field(None, max_length=20)
    sort: list[Sort] | None = Field(None, max_length=5)
    search: Search | None = None


def parse_list(body: object) -> ListRequest:
    """Raises InvalidInput."""
    if not isinstance(body, dict):
        raise InvalidInput("body: must be an object")
    try:
        wish = ListRequest.model_validate(body)
    except ValidationError as error:
        raise InvalidInput(describe(error.errors(include_url=False))) from None
    if wish.search and wish.search.term:
        raise InvalidInput("search: is not possible here; use filters")
    return wish


def is_descending(sort: list[Sort] | None) -> bool:
    """Newest first unless asked otherwise. Raises InvalidRequest for an order that there is not."""
    if not sort:
        return True
    if len(sort) > 1 or sort[0].field != "created_at" or sort[0].dir not in ("asc", "desc"):
        raise InvalidRequest("sort: only created_at asc or desc is possible")
    return sort[0].dir == "desc"


def page(items: list[Json], next_cursor: str | None, limit: int, *, has_previous: bool = False) -> Json:
    """The CursorListResponse."""
    return {
        "items": items,
        "next_cursor": next_cursor or "",
        "prev_cursor": "",
        "has_next": next_cursor is not None,
        "has_previous": has_previous,
        "items_per_page": limit,
    }
