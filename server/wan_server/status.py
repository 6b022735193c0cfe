"""Task states as the hosted service numbers them (the live numbering: 10 completed, 11 failed, 12 cancelled)."""

from __future__ import annotations

from enum import IntEnum


class TaskStatus(IntEnum):
    """State of a task on the wire. `rejected` (13) is never used: old clients do not know it."""

    UNKNOWN = 0
    #: accepted by the front end
    RECEIVED = 1
    #: waits for a worker, or for its `run_at`
    QUEUED = 2
    #: a worker has taken it
    DISPATCHED = 3
    #: media is fetched and examined
    PREPARING = 4
    SERVING = 5
    #: the model is being loaded
    SETTING_UP = 6
    #: text, images and latents are worked on
    RUNNING = 7
    #: cancel was asked for, the worker has not let go yet
    CANCELLING = 8
    #: frames are encoded and the file is stored
    UPLOADING = 9
    COMPLETED = 10
    FAILED = 11
    CANCELLED = 12

    @property
    def text(self) -> str:
        """Lower-case name, as in `status_text`."""
        return self.name.lower()

    @property
    def is_terminal(self) -> bool:
        return self in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)
