"""The tables beside the queue's own: files, API keys, workers, secrets. SQLAlchemy Core on SQLite or PostgreSQL.

Tasks have no table here: the queue's workflow records are the only truth about them.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

BUSY_TIMEOUT_S: Final = 30.0
#: key of the PostgreSQL advisory lock that stands for SQLite's single writer
_ADVISORY_LOCK: Final = 0x77616E62

metadata = MetaData()

files = Table(
    "files",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("filename", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64)),
    Column("created_at", Float, nullable=False),
    Column("stored", Boolean, nullable=False),
    Column("probe", Text),
    Column("task_id", String(26)),
    Column("role", String(8)),
    Index("files_sha256", "sha256"),
    Index("files_task_id", "task_id"),
    Index("files_created_at", "created_at", "id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("name", Text, nullable=False),
    #: of the whole token; the token itself is never stored
    Column("sha256", String(64), nullable=False, unique=True),
    #: first characters of the token, to recognise it by
    Column("prefix", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_used_at", Float),
    Column("revoked_at", Float),
)

workers = Table(
    "workers",
    metadata,
    Column("executor_id", String(64), primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("model", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("job", String(26)),
    Column("started_at", Float, nullable=False),
    Column("heartbeat_at", Float, nullable=False),
)

server_secrets = Table(
    "server_secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)


def make_engine(url: str) -> Engine:
    """An engine for the URL; SQLite in WAL mode, with patience instead of "database is locked"."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def teach_sqlite_subseconds() -> None:
    """Lets DBOS work on Python 3.12 and later with an SQLite before 3.42, whose `unixepoch('subsec')` is NULL.

    Touches every engine that connects from now on, DBOS's own included; does nothing where SQLite knows it.
    """
    if sqlite3.sqlite_version_info >= (3, 42) or event.contains(Engine, "connect", _add_unixepoch):
        return
    event.listen(Engine, "connect", _add_unixepoch)


def _add_unixepoch(connection: object, _record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.create_function("unixepoch", 1, lambda when: time.time() if when == "subsec" else None)


def create_all(engine: Engine) -> None:
    """Create what is missing. Any number of processes may do so at once."""
    with exclusive(engine) as connection:
        metadata.create_all(connection)


@contextmanager
def exclusive(engine: Engine) -> Iterator[Connection]:
    """A transaction during which no other `exclusive` runs, in this or any other process."""
    with engine.connect().execution_options(wanbox_immediate=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        yield connection


def server_secret(engine: Engine, name: str) -> bytes:
    """32 random bytes, drawn once and shared by every process on the database."""
    with exclusive(engine) as connection:
        found = connection.scalar(select(server_secrets.c.value).where(server_secrets.c.name == name))
        if found is None:
            found = secrets.token_hex(32)
            connection.execute(insert(server_secrets).values(name=name, value=found))
    return bytes.fromhex(found)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """What a worker says about itself at each heartbeat. Times in epoch seconds."""

    executor_id: str
    host: str
    pid: int
    #: loading | ready | stopping
    state: str
    model: str
    device: str
    #: id of the job it holds
    job: str | None
    started_at: float
    heartbeat_at: float

    @property
    def models(self) -> list[str]:
        """The models that it serves; `model` holds them with commas between."""
        return self.model.split(",")


class Workers:
    """The workers that are alive, by their heartbeats."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.clock = clock
        create_all(engine)

    def beat(self, row: WorkerRow) -> None:
        """Insert or replace the row of one worker."""
        values = asdict(row)
        if self._update(values):
            return
        try:
            with self.engine.begin() as connection:
                connection.execute(insert(workers).values(**values))
        except IntegrityError:  # another process inserted it in between
            self._update(values)

    def claim(self, row: WorkerRow, fresh_s: float, is_gone: Callable[[WorkerRow], bool]) -> WorkerRow | None:
        """Enter under a name that nobody else uses. Returns the worker that holds it; None when it is ours now."""
        same = workers.c.executor_id == row.executor_id
        with exclusive(self.engine) as connection:
            found = connection.execute(select(workers).where(same)).mappings().first()
            holder = None if found is None else WorkerRow(**found)
            if holder and holder.heartbeat_at >= self.clock() - fresh_s and not is_gone(holder):
                return holder
            connection.execute(delete(workers).where(same))
            connection.execute(insert(workers).values(**asdict(row)))
        return None

    def list(self, fresh_s: float) -> list[WorkerRow]:
        """Workers whose last heartbeat is at most `fresh_s` old, the oldest worker first."""
        query = select(workers).where(workers.c.heartbeat_at >= self.clock() - fresh_s)
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(workers.c.started_at)).mappings()
            return [WorkerRow(**row) for row in rows]

    def remove(self, executor_id: str, pid: int) -> None:
        """Forget a worker, unless another process has taken its name."""
        ours = (workers.c.executor_id == executor_id) & (workers.c.pid == pid)
        with self.engine.begin() as connection:
            connection.execute(delete(workers).where(ours))

    def _update(self, values: dict[str, Any]) -> bool:
        same = workers.c.executor_id == values["executor_id"]
        with self.engine.begin() as connection:
            return connection.execute(update(workers).where(same).values(**values)).rowcount > 0


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so, see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute(f"pragma busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    _switch_to_wal(cursor)
    cursor.execute("pragma synchronous = normal")
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    # the switch ignores busy_timeout, so two processes that create the file together may meet here
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while cursor.execute("pragma journal_mode").fetchone()[0] not in ("wal", "memory"):
        try:
            cursor.execute("pragma journal_mode = wal").fetchone()
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("wanbox_immediate")
    connection.exec_driver_sql("begin immediate" if immediate else "begin")
