"""Pages of a listing of workflows that neither shift nor repeat anything while jobs come and go."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from itertools import count, groupby
from typing import Any, Final, Literal

from dbos import WorkflowStatus

from wan_server.errors import InvalidRequest
from wan_server.records import iso, job_of

Order = Literal["asc", "desc"]

CHUNK: Final = 200


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """Place in a listing: right after this job. SQLite keeps whole seconds, so the job's own time stands beside it."""

    created_ms: int
    #: epoch seconds as the job itself has them
    submitted_at: float
    job_id: str

    @classmethod
    def at(cls, row: WorkflowStatus) -> Cursor:
        """The place of a row."""
        return cls(row.created_at or 0, job_of(row).created_at, row.workflow_id)

    def encode(self) -> str:
        return base64.urlsafe_b64encode(json.dumps(astuple(self)).encode()).decode()

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Read a cursor. Raises InvalidRequest when it is not one of ours."""
        try:
            created_ms, submitted_at, job_id = json.loads(base64.urlsafe_b64decode(text.encode()))
            iso(created_ms / 1000)
            return cls(created_ms, float(submitted_at), str(job_id))
        except (binascii.Error, ValueError, TypeError, OverflowError, OSError):
            raise InvalidRequest("cursor: is not one that this server gave out") from None


def rows_after(read: Callable[..., list[WorkflowStatus]], at: Cursor | None, order: Order) -> Iterator[WorkflowStatus]:
    """Rows from a place on. `read` takes the paging arguments of `list_workflows`."""
    for _, ties in groupby(_rows_from(read, at, order), key=lambda row: row.created_at):
        for row in sorted(ties, key=Cursor.at, reverse=order == "desc"):
            if at is None or (Cursor.at(row) < at if order == "desc" else Cursor.at(row) > at):
                yield row


def _rows_from(read: Callable[..., list[WorkflowStatus]], at: Cursor | None, order: Order) -> Iterator[WorkflowStatus]:
    """Rows from the instant of a place on, read in chunks."""
    bound = None if at is None else iso(at.created_ms / 1000)
    bounds: dict[str, Any] = {"end_time": bound} if order == "desc" else {"start_time": bound}
    for offset in count(0, CHUNK):
        rows = read(limit=CHUNK, offset=offset, sort_desc=order == "desc", **bounds)
        yield from rows
        if len(rows) < CHUNK:
            return
