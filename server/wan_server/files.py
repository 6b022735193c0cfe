"""Files of callers and tasks: records in a table, bytes in a content-addressed store.

Two records may share one blob; a blob goes when its last record goes. Knows no HTTP but the form of its links.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from anyio.to_thread import run_sync
from sqlalchemy import Connection, Engine, Row, Select, and_, delete, func, insert, or_, select, update

from wan_server.blobs import Blobs, Spool
from wan_server.errors import Conflict, NotFound, TooLarge
from wan_server.ids import ID_PATTERN, is_id, new_id
from wan_server.settings import Settings
from wan_server.tables import create_all, exclusive, files, make_engine

OCTETS: Final = "application/octet-stream"
#: the only content types that are ever served, by container as sniffed from the bytes
CONTENT_TYPES: Final = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "bmp": "image/bmp",
    "webp": "image/webp",
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
}
_LINK: Final = re.compile(rf"(?:https?://[^/\s]+)?(?:/[^\s?#]*)?/app/files/({ID_PATTERN})(?:/[^/\s?#]*)?(?:[?#]\S*)?")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file as its owner knows it. `created_at` in epoch seconds."""

    id: str
    filename: str
    #: as declared by whoever sent it
    content_type: str
    size: int
    sha256: str | None
    created_at: float
    #: whether the bytes are here
    stored: bool
    #: Probe.to_json() of the content, once somebody looked
    probe: dict[str, Any] | None
    task_id: str | None
    #: input | output
    role: str | None

    @property
    def served_type(self) -> str:
        """Content type for downloads: our own output as declared, anything else by its content."""
        if self.role == "output" and self.content_type in CONTENT_TYPES.values():
            return self.content_type
        return CONTENT_TYPES.get((self.probe or {}).get("format") or "", OCTETS)


class FileStore:
    """Create, fill, read and delete files. Thread-safe."""

    def __init__(
        self, settings: Settings, engine: Engine | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`engine`: one that is at hand, else the store makes its own for the settings' database."""
        self.engine = engine or make_engine(settings.database)
        self.blobs = Blobs(settings.store)
        self.max_bytes = settings.max_upload_bytes
        self.clock = clock
        create_all(self.engine)

    def create(self, filename: str | None, content_type: str | None, size: int | None) -> FileRecord:
        """A slot to be filled by `receive`. Raises TooLarge when it is said to exceed the limit."""
        if size is not None and size > self.max_bytes:
            raise TooLarge(f"size: must be at most {self.max_bytes} bytes (got {size})")
        return self._insert(self._record(filename, content_type, size or 0))

    async def receive(self, file_id: str, chunks: AsyncIterator[bytes]) -> FileRecord:
        """Fill a slot from a stream. A filled slot only takes the same bytes again.

        Raises NotFound, TooLarge, Conflict; whatever the stream raises passes through and leaves nothing behind.
        """
        record = await run_sync(self.get, file_id)
        with self.blobs.spool(self.max_bytes) as spool:
            async for chunk in chunks:
                await run_sync(spool.write, chunk)
            return await run_sync(self._keep, record, spool)

    def ingest(
        self,
        path: Path,
        *,
        filename: str | None,
        content_type: str | None,
        task_id: str | None = None,
        role: str | None = None,
    ) -> FileRecord:
        """Copy a local file in. Outputs may be larger than uploads."""
        record = replace(self._record(filename, content_type, 0), task_id=task_id, role=role)
        with self.blobs.spool(max(self.max_bytes, path.stat().st_size)) as spool:
            spool.copy_from(path)
            return self._keep(record, spool)

    def ingest_bytes(self, data: bytes, *, filename: str | None, content_type: str | None) -> FileRecord:
        """Keep bytes that came inside a request. Raises TooLarge."""
        with self.blobs.spool(self.max_bytes) as spool:
            spool.write(data)
            return self._keep(self._record(filename, content_type, 0), spool)

    def get(self, file_id: str) -> FileRecord:
        """Raises NotFound."""
        found = self._select(select(files).where(files.c.id == file_id)) if is_id(file_id) else []
        if not found:
            raise NotFound(f"no file has the id {file_id}")
        return found[0]

    def list(self, limit: int = 20, after: tuple[float, str] | None = None) -> list[FileRecord]:
        """The newest first, after the (created_at, id) of the last one seen."""
        query = select(files).order_by(files.c.created_at.desc(), files.c.id.desc()).limit(limit)
        if after is not None:
            at, last = after
            query = query.where(or_(files.c.created_at < at, and_(files.c.created_at == at, files.c.id < last)))
        return self._select(query)

    def for_task(self, task_id: str) -> list[FileRecord]:
        """Files that were made for the task, oldest first."""
        return self._select(select(files).where(files.c.task_id == task_id).order_by(files.c.created_at))

    def delete(self, file_id: str) -> None:
        """Forget a file, and its bytes when no other file has the same. Raises NotFound."""
        record = self.get(file_id)
        with exclusive(self.engine) as connection:
            connection.execute(delete(files).where(files.c.id == file_id))
            if record.sha256 and not _users(connection, record.sha256):
                self.blobs.delete(record.sha256)

    def read(self, file_id: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Bytes of a stored file in chunks, `length` of them from `start`. Raises NotFound."""
        record = self.get(file_id)
        return self.blobs.read(_stored(record), start, record.size - start if length is None else length)

    @contextmanager
    def local(self, file_id: str) -> Iterator[Path]:
        """A local path to read a stored file from (never to write to). Raises NotFound."""
        with self.blobs.local(_stored(self.get(file_id))) as path:
            yield path

    def set_probe(self, file_id: str, probe: dict[str, Any]) -> FileRecord:
        """Remember what the content is. Raises NotFound."""
        with self.engine.begin() as connection:
            connection.execute(update(files).where(files.c.id == file_id).values(probe=json.dumps(probe)))
        return self.get(file_id)

    def uri(self, record: FileRecord, base_url: str) -> str:
        """The link that anybody may download from."""
        return f"{base_url}/app/files/{record.id}/{safe_name(record.filename)}"

    def id_of(self, uri: str) -> str | None:
        """The file id in one of our links or paths; None for anything else."""
        found = _LINK.fullmatch(uri)
        return found[1] if found else None

    def scratch_put(self, task_id: str, name: str, path: Path) -> None:
        """Keep an intermediate file of a task."""
        self.blobs.scratch_put(task_id, name, path)

    def scratch_get(self, task_id: str, name: str, path: Path) -> bool:
        """Copy an intermediate file of a task to `path`; False when there is none."""
        return self.blobs.scratch_get(task_id, name, path)

    def scratch_clear(self, task_id: str) -> None:
        """Drop every intermediate file of a task."""
        self.blobs.scratch_clear(task_id)

    def _record(self, filename: str | None, content_type: str | None, size: int) -> FileRecord:
        return FileRecord(
            id=new_id(),
            filename=clean_name(filename),
            content_type=(content_type or OCTETS)[:200],
            size=size,
            sha256=None,
            created_at=self.clock(),
            stored=False,
            probe=None,
            task_id=None,
            role=None,
        )

    def _keep(self, record: FileRecord, spool: Spool) -> FileRecord:
        """Give a record its bytes. A record that has bytes only takes the same again."""
        if not self.blobs.is_local:
            self.blobs.adopt(spool)  # the slow part, outside of the lock
        # exclusive, so that a blob cannot be deleted between being found and being claimed
        with exclusive(self.engine) as connection:
            filled = connection.execute(select(files).where(files.c.id == record.id, files.c.stored)).first()
            if filled is not None and filled.sha256 != spool.sha256 and not _users(connection, spool.sha256):
                self.blobs.delete(spool.sha256)
            if filled is not None:
                return _same(_from_row(filled), spool)
            self.blobs.adopt(spool)
            record = replace(record, size=spool.size, sha256=spool.sha256, stored=True)
            connection.execute(delete(files).where(files.c.id == record.id))
            connection.execute(insert(files).values(**_values(record)))
        return record

    def _insert(self, record: FileRecord) -> FileRecord:
        with self.engine.begin() as connection:
            connection.execute(insert(files).values(**_values(record)))
        return record

    def _select(self, query: Select[Any]) -> list[FileRecord]:
        with self.engine.connect() as connection:
            return [_from_row(row) for row in connection.execute(query)]


def clean_name(filename: str | None) -> str:
    """A file name fit to show: no folders, no control characters, at most 200 characters."""
    name = re.split(r"[/\\]", filename or "")[-1]
    name = "".join(c for c in name if c.isprintable()).strip(" .")
    return name[-200:] or "file"


def safe_name(filename: str) -> str:
    """A file name fit for a URL path and a header: plain ASCII."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", filename).strip("_.") or "file"


def _stored(record: FileRecord) -> str:
    if not record.stored or record.sha256 is None:
        raise NotFound(f"file {record.id} was never uploaded")
    return record.sha256


def _same(record: FileRecord, spool: Spool) -> FileRecord:
    if record.sha256 != spool.sha256:
        raise Conflict(f"file {record.id} already has other content: create a new file")
    return record


def _users(connection: Connection, sha256: str) -> int:
    return connection.scalar(select(func.count()).select_from(files).where(files.c.sha256 == sha256)) or 0


def _values(record: FileRecord) -> dict[str, Any]:
    values = asdict(record)
    return values | {"probe": None if record.probe is None else json.dumps(record.probe)}


def _from_row(row: Row[Any]) -> FileRecord:
    values: dict[str, Any] = dict(row._mapping)
    values["probe"] = json.loads(values["probe"]) if values["probe"] else None
    return FileRecord(**values)
