"""A real `wanbox serve` in its own process group, as an operator starts it, for the contract tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = ("server", "pipelines", "kernels")

#: the clients' clock runs this much faster in the long-wait test, and the server's keep-alive with it
SPEED = 30
FAST_SETTINGS = {
    "WANBOX_ALLOW_PRIVATE_URLS": "1",
    "WANBOX_STREAM_POLL_S": "0.1",
    "WANBOX_STREAM_KEEPALIVE_S": str(10 / SPEED),
    "WANBOX_QUEUE_POLL_S": "0.1",
    "WANBOX_WEBHOOK_BACKOFF_S": "0.1",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers at `base_url`; `log` holds what it and its workers print."""

    base_url: str
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_server(
    data_dir: Path, *options: str, ready: str = "/readyz", settings: dict[str, str] | None = None
) -> Iterator[Server]:
    """Starts `wanbox serve` on a free port, waits until `ready` answers 200, ends the whole process group."""
    data_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "wan_server.cli", "serve", "--port", str(port), "--data-dir", str(data_dir)]
    log = data_dir / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *options],
            cwd=data_dir,
            env=clean_environment() | FAST_SETTINGS | (settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until_ready(server, ready)
        yield server
    finally:
        end(process)


def clean_environment() -> dict[str, str]:
    """This environment without settings of the person who runs the tests; the checkout first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANBOX_")}
    return kept | {"PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in SOURCE_ROOTS)}


def wait_until_ready(server: Server, path: str, timeout_s: float = 120) -> None:
    """Returns when `path` answers 200; raises AssertionError with the log when that does not happen in time."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up and server.process.poll() is None:
        try:
            if httpx.get(server.base_url + path, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"no {path} from wanbox serve; its log:\n{tail(server.log)}")


def end(process: subprocess.Popen[bytes], grace_s: float = 10) -> None:
    """Asks for a clean stop, then kills what is left of the group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(log: Path, lines: int = 80) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
