"""How long a job will take and wait, learnt from the jobs that finished lately. Knows no database."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from wan_server.job import Job

#: pixels of a frame, as a weight of the work (the pixel budgets of the two tiers)
TIER_PIXELS = {"720P": 1280 * 720, "1080P": 1920 * 1080}
REFRESH_S = 10.0


def work(job: Job) -> float:
    """Relative size of a job: megapixels of a frame times seconds of video."""
    pixels = TIER_PIXELS.get(str(job.input.get("resolution")), TIER_PIXELS["1080P"])
    return pixels / 1e6 * float(job.input.get("duration") or 5)


class Estimator:
    """Seconds per unit of work: the median over finished jobs of the same model, renewed every ten seconds."""

    def __init__(self, finished: Callable[[], list[tuple[Job, float]]], clock: Callable[[], float] = time.time) -> None:
        self.finished = finished
        self.clock = clock
        self.read_at = float("-inf")
        self.rates: dict[str, float] = {}

    def rate(self, model: str) -> float | None:
        """Seconds per unit of work of a model; None before its first job finished."""
        if self.clock() - self.read_at > REFRESH_S:
            self.read_at = self.clock()
            self.rates = _rates(self.finished())
        return self.rates.get(model)

    def run(self, job: Job) -> float | None:
        """Seconds that a worker needs for the job."""
        rate = self.rate(job.model)
        return None if rate is None else rate * work(job)

    def wait(self, job: Job, ahead: int, workers: int) -> float | None:
        """Seconds until the job's result with `ahead` jobs of about its size before it."""
        own = self.run(job)
        return None if own is None else own * (ahead / workers + 1)


def _rates(finished: list[tuple[Job, float]]) -> dict[str, float]:
    by_model: dict[str, list[float]] = {}
    for job, seconds in finished:
        by_model.setdefault(job.model, []).append(seconds / work(job))
    return {model: median(values) for model, values in by_model.items()}
