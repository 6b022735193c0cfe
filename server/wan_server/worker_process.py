"""What the supervisor and the worker agree on: the worker's name and its exit statuses. Imports no worker."""

from __future__ import annotations

import socket
from typing import Final

#: the CUDA context is broken: start another worker
EXIT_DEVICE_FAULT: Final = 75
#: unknown model, missing weights, a name in use: starting another is no use
EXIT_CANNOT_START: Final = 78


def default_name(index: int = 0) -> str:
    """Executor name that stays the same over restarts, so that a worker finds its own unfinished jobs."""
    return f"{socket.gethostname()}-{index}"
