"""Jobs that wait in the queue of a set of models that no worker serves any more, as after a change of WANBOX_MODELS."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import Table, select, update

from wan_server.queue import RENDER_WORKFLOW, JobQueue, render_queue_of
from wan_server.records import WAITING

logger = logging.getLogger(__name__)

#: heartbeat time-outs without a worker before a queue counts as left
PATIENCE: Final = 3


class StrayLines:
    """Brings the jobs of left queues into our own, where those for other models fail with that reason.

    DBOS can only put a job into another queue by starting it anew, which would forget its `run_at` and its attempts and
    wake cancelled ones; hence the update of its table.
    """

    def __init__(self, queue: JobQueue, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue = queue
        self.clock = clock
        self.patience_s = PATIENCE * queue.settings.heartbeat_timeout_s
        #: queue -> when it was first found without a worker
        self.since: dict[str, float] = {}

    def take_over(self) -> list[str]:
        """Move the jobs of queues that have been without a worker for long enough. Returns those queues."""
        now = self.clock()
        self.since = {line: self.since.get(line, now) for line in self._stray()}
        left = [line for line, since in self.since.items() if now - since >= self.patience_s]
        for line in left:
            logger.warning("%d jobs of %s come into %s: no worker takes them", self._move(line), line, self._own)
        return left

    @property
    def _own(self) -> str:
        return self.queue.render_queue

    @property
    def _table(self) -> Table:
        return self.queue.client._sys_db.tables.workflow_status

    def _stray(self) -> set[str]:
        table = self._table
        waiting = select(table.c.queue_name).where(table.c.name == RENDER_WORKFLOW, table.c.status.in_(WAITING))
        with self.queue.client._sys_db.engine.connect() as connection:
            lines = {line for line in connection.scalars(waiting.distinct()) if line is not None}
        if not lines - {self._own}:
            return set()
        return lines - {self._own} - {render_queue_of(worker.models) for worker in self.queue.live_workers()}

    def _move(self, line: str) -> int:
        table = self._table
        waiting = (table.c.queue_name == line, table.c.name == RENDER_WORKFLOW, table.c.status.in_(WAITING))
        with self.queue.client._sys_db.engine.begin() as connection:
            return connection.execute(update(table).where(*waiting).values(queue_name=self._own)).rowcount
