"""What others know of a worker: its name, its exit statuses, whether it still runs. Imports no worker."""

from __future__ import annotations

import os
import socket
from typing import Final

from wan_server.tables import WorkerRow

#: the CUDA context is broken: start another worker
EXIT_DEVICE_FAULT: Final = 75
#: unknown model, missing weights, a name in use: starting another is no use
EXIT_CANNOT_START: Final = 78


def default_name(index: int = 0) -> str:
    """Executor name that stays the same over restarts, so that a worker finds its own unfinished jobs."""
    return f"{socket.gethostname()}-{index}"


def is_gone(worker: WorkerRow) -> bool:
    """Whether the process certainly no longer runs; on another machine only its heartbeat can tell."""
    if worker.host != socket.gethostname():
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
