"""What a worker says while it works: progress lines with phase, step, percent and time left. Knows no database."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from wan_server.job import Event
from wan_server.status import TaskStatus


@dataclass(frozen=True, slots=True)
class Phase:
    """One stage of a job: its task status and its share of the progress bar, in percent."""

    name: str
    status: TaskStatus
    starts: int
    ends: int
    text: str


PHASES: Final = {
    phase.name: phase
    for phase in (
        Phase("prepare", TaskStatus.PREPARING, 0, 3, "examining the media"),
        Phase("prompt", TaskStatus.PREPARING, 3, 5, "preparing the prompt"),
        Phase("plan", TaskStatus.PREPARING, 5, 5, "planning the render"),
        Phase("encode", TaskStatus.RUNNING, 5, 10, "encoding text and images"),
        Phase("denoise", TaskStatus.RUNNING, 10, 80, "denoising"),
        Phase("decode", TaskStatus.UPLOADING, 80, 98, "decoding and encoding frames"),
        Phase("publish", TaskStatus.UPLOADING, 98, 100, "storing the video"),
    )
}
ORDER: Final = tuple(PHASES)
#: lines are written at most this often (seconds), except the first and last of a phase
LINE_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of a phase is done, where one is done in several, and where it lies within the phase, in [0, 1]."""

    number: int = 0
    count: int = 1
    starts: float = 0.0
    ends: float = 1.0

    @property
    def size(self) -> float:
        return self.ends - self.starts


WHOLE: Final = Share()


@dataclass(slots=True)
class Pace:
    """Seconds that each phase took in the last job of this worker; lets the ETA look past the current phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    def after(self, phase: str) -> float:
        """Seconds of all phases that follow."""
        return sum(self.seconds.get(name, 0.0) for name in ORDER[ORDER.index(phase) + 1 :])


class Reporter:
    """Writes the lines of one phase of one job.

    `write` stores a line and raises when the job is no longer ours; `check` only raises. One of them is called at
    every step, so a cancel takes effect within one.
    """

    def __init__(
        self,
        phase: str,
        write: Callable[[Event], None],
        check: Callable[[], None],
        pace: Pace,
        clock: Callable[[], float] = time.time,
        share: Share = WHOLE,
    ) -> None:
        self.phase = PHASES[phase]
        self.share = share
        self.write = write
        self.check = check
        self.pace = pace
        self.clock = clock
        self.began = clock()
        self.first_step: tuple[float, int] | None = None
        self.written_at = self.began
        self.checked_at = float("-inf")

    def start(self) -> None:
        """Say that the phase, or a part of it, begins."""
        part = f", part {self.share.number + 1} of {self.share.count}" if self.share.number else ""
        self.write(self._event(self.phase.text + part, self._percent(0.0)))

    def rename(self, text: str) -> None:
        """Call the phase otherwise from here on."""
        self.phase = replace(self.phase, text=text)

    def beat(self) -> None:
        """Between pieces of work: only notice a cancel, a few times a second at most."""
        now = self.clock()
        if now - self.checked_at >= LINE_EVERY_S:
            self.checked_at = now
            self.check()

    def step(self, step: int, steps: int) -> None:
        """`step` of `steps` is done; lines count the steps of all parts."""
        now = self.clock()
        if self.first_step is None:
            self.first_step = (now, step)
        if step < steps and step > 1 and now - self.written_at < LINE_EVERY_S:
            return self.check()
        self.written_at = now
        eta_s = self._eta(step, steps, now)
        left = "" if eta_s is None else f", about {eta_s:.0f} s left"
        done, total = self.share.number * steps + step, self.share.count * steps
        text = f"{self.phase.text}: {done} of {total}{left}"
        return self.write(self._event(text, self._percent(step / steps), done, total, eta_s))

    def done(self) -> None:
        """Remember how long the phase took; a part tells it for the whole."""
        self.pace.seconds[self.phase.name] = (self.clock() - self.began) / self.share.size

    def _eta(self, step: int, steps: int, now: float) -> float | None:
        assert self.first_step is not None
        at, first = self.first_step
        if step <= first:  # one point gives no speed: the first step also warms up
            return None
        a_step = (now - at) / (step - first)
        further = a_step * steps * (1 - self.share.ends) / self.share.size  # the parts that follow
        return round(a_step * (steps - step) + further + self.pace.after(self.phase.name), 1)

    def _percent(self, done: float) -> int:
        """Progress of the job with so much of this part done."""
        span = self.phase.ends - self.phase.starts
        return self.phase.starts + int(span * (self.share.starts + self.share.size * done))

    def _event(
        self, text: str, progress: int, step: int | None = None, steps: int | None = None, eta_s: float | None = None
    ) -> Event:
        return Event(self.clock(), int(self.phase.status), self.phase.name, text, progress, step, steps, eta_s)
