"""Keeps one worker process running beside the front end, and replaces it when it dies."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from wan_server.worker_process import EXIT_CANNOT_START

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 30.0
#: a worker that lived this long starts with a clean record
SETTLED_S: Final = 60.0
STOP_S: Final = 15.0


class Supervisor:
    """Starts `wanbox worker` and starts it again when it ends, with growing pauses when it ends at once."""

    def __init__(self, name: str, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self.command = [sys.executable, "-m", "wan_server.cli", "worker", "--name", name, "--supervised"]
        self.environment = dict(environment)
        self.clock = clock
        self.process: subprocess.Popen[bytes] | None = None
        #: why there is no worker and will be none
        self.given_up: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the worker: the closed pipe asks it to, a kill makes sure."""
        self._stopping.set()
        process = self.process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = self.clock()
            status = self._run_once()
            if self._stopping.is_set():
                return
            if status == EXIT_CANNOT_START:
                self.given_up = "the worker cannot start as it is configured; its log says why"
                logger.error(self.given_up)
                return
            if self.clock() - began > SETTLED_S:
                pause_s = FIRST_PAUSE_S
            logger.warning("the worker ended with status %s; another starts in %.1f s", status, pause_s)
            self._stopping.wait(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _run_once(self) -> int:
        try:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, env=self.environment)
        except OSError as error:
            logger.error("the worker cannot be started: %s", error)
            return EXIT_CANNOT_START
        try:
            return self.process.wait()
        finally:
            if self.process.stdin is not None:
                self.process.stdin.close()
