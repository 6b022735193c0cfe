"""The supervisor with real child processes in the place of workers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from wan_server.supervisor import Supervisor
from wan_server.worker_process import EXIT_CANNOT_START


def supervisor_of(code: str, log: Path) -> Supervisor:
    """A supervisor whose worker writes its pid to `log` and then does `code`."""
    made = Supervisor("w", os.environ)
    prelude = f"import os, sys, time; open({str(log)!r}, 'a').write(f'{{os.getpid()}}\\n')"
    made.command = [sys.executable, "-c", f"{prelude}\n{code}"]
    return made


def pids(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_ends_is_started_again(tmp_path: Path) -> None:
    supervisor = supervisor_of("sys.exit(1)", tmp_path / "log")
    supervisor.start()
    wait_for(lambda: len(pids(tmp_path / "log")) >= 2)
    supervisor.stop()
    assert supervisor.given_up is None


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    supervisor = supervisor_of("time.sleep(60)", tmp_path / "log")
    supervisor.start()
    wait_for(lambda: len(pids(tmp_path / "log")) == 1)
    os.kill(pids(tmp_path / "log")[0], 9)
    wait_for(lambda: len(pids(tmp_path / "log")) == 2)
    supervisor.stop()
    wait_for(lambda: not is_alive(pids(tmp_path / "log")[1]))


def test_a_worker_that_cannot_start_is_given_up(tmp_path: Path) -> None:
    supervisor = supervisor_of(f"sys.exit({EXIT_CANNOT_START})", tmp_path / "log")
    supervisor.start()
    wait_for(lambda: supervisor.given_up is not None)
    supervisor.stop()
    assert len(pids(tmp_path / "log")) == 1


def test_the_worker_learns_from_its_input_that_the_supervisor_is_gone(tmp_path: Path) -> None:
    supervisor = supervisor_of("sys.stdin.read(); os._exit(0)", tmp_path / "log")
    supervisor.start()
    wait_for(lambda: len(pids(tmp_path / "log")) == 1)
    assert supervisor.process is not None
    assert supervisor.process.stdin is not None
    supervisor._stopping.set()
    supervisor.process.stdin.close()
    wait_for(lambda: supervisor.process is not None and supervisor.process.poll() == 0)
    supervisor.stop()
