"""The database: prepared by many processes at once, patient, and workers by their heartbeats."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from server_process import clean_environment
from wan_server.tables import (
    WorkerRow,
    Workers,
    create_all,
    exclusive,
    make_engine,
    metadata,
    server_secret,
    teach_sqlite_subseconds,
)

ROW = WorkerRow("w1", "box", 7, "loading", "tiny", "cpu", None, 100.0, 100.0)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path}/deep/down/wanbox.db")
    yield engine
    engine.dispose()


def test_sqlite_uses_a_write_ahead_log_and_waits(engine: Engine):
    with engine.connect() as connection:
        assert connection.scalar(text("pragma journal_mode")) == "wal"
        assert connection.scalar(text("pragma busy_timeout")) == 30000


def test_creating_twice_changes_nothing(engine: Engine):
    create_all(engine)
    create_all(engine)
    assert set(inspect(engine).get_table_names()) == set(metadata.tables)


def test_processes_that_start_together_prepare_one_database(tmp_path: Path):
    code = (
        "import sys; from wan_server.tables import *; engine = make_engine(sys.argv[1]); create_all(engine); "
        "print(server_secret(engine, 'uploads').hex())"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/wanbox.db"]
    both = [
        subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=30) for process in both]
    assert [errors for _, errors in answers] == [""] * 3
    assert len({secret for secret, _ in answers}) == 1


def test_exclusive_transactions_do_not_overlap(engine: Engine):
    inside: list[str] = []

    def work(name: str) -> None:
        with exclusive(engine):
            inside.append(name)
            time.sleep(0.02)
            inside.append(name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    assert inside[0::2] == inside[1::2]


def test_secrets_are_drawn_once_per_name(engine: Engine):
    create_all(engine)
    first = server_secret(engine, "uploads")
    assert len(first) == 32
    assert server_secret(engine, "uploads") == first != server_secret(engine, "other")


def test_a_heartbeat_replaces_the_row_and_goes_stale(engine: Engine):
    workers = Workers(engine, clock=lambda: 130.0)
    workers.beat(ROW)
    beating = replace(ROW, state="ready", job="j1", heartbeat_at=115.0)
    workers.beat(beating)
    assert workers.list(fresh_s=20) == [beating]
    assert workers.list(fresh_s=10) == []


def test_a_removed_worker_is_gone(engine: Engine):
    workers = Workers(engine, clock=lambda: 100.0)
    workers.beat(ROW)
    workers.beat(replace(ROW, executor_id="w2", started_at=50.0))
    assert [row.executor_id for row in workers.list(5)] == ["w2", "w1"]
    workers.remove("w1", 8)  # another process of that name
    assert workers.list(60)
    workers.remove("w1", 7)
    assert [row.executor_id for row in workers.list(5)] == ["w2"]


def test_the_clock_of_the_queue_works_on_an_old_sqlite(tmp_path: Path):
    """Python 3.12 and later make DBOS ask for this function, which SQLite has from 3.42 on."""
    teach_sqlite_subseconds()
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")  # as DBOS makes its own
    with engine.connect() as connection:
        assert connection.scalar(text("select unixepoch('subsec')")) == pytest.approx(time.time(), abs=5)
    engine.dispose()


def test_a_name_has_one_holder(engine: Engine):
    workers = Workers(engine, clock=lambda: 100.0)
    assert workers.claim(ROW, 20, lambda _: False) is None
    rival = replace(ROW, pid=8)
    assert workers.claim(rival, 20, lambda _: False) == ROW
    assert workers.claim(rival, 20, lambda holder: holder == ROW) is None
    assert workers.list(20) == [rival]


def test_a_stale_holder_loses_its_name(engine: Engine):
    assert Workers(engine, clock=lambda: 100.0).claim(ROW, 20, lambda _: False) is None
    later = replace(ROW, pid=8, heartbeat_at=121.0)
    assert Workers(engine, clock=lambda: 121.0).claim(later, 20, lambda _: False) is None
