"""Progress lines: percent over the whole job, time left, and a check at every step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from wan_server.job import Event
from wan_server.progress import PHASES, WHOLE, Pace, Reporter, Share


class Bench:
    """A reporter on a clock that the test turns."""

    def __init__(self, phase: str = "denoise", pace: Pace | None = None, share: Share = WHOLE) -> None:
        self.now = 100.0
        self.lines: list[Event] = []
        self.checks = 0
        self.pace = pace or Pace()
        self.reporter = Reporter(phase, self.lines.append, self.check, self.pace, clock=lambda: self.now, share=share)

    def check(self) -> None:
        self.checks += 1

    def step(self, step: int, steps: int, took: float) -> None:
        self.now += took
        self.reporter.step(step, steps)


def test_phases_cover_the_bar_without_gap() -> None:
    phases = list(PHASES.values())
    assert phases[0].starts == 0
    assert phases[-1].ends == 100
    assert all(left.ends == right.starts for left, right in pairwise(phases))


def test_progress_never_goes_back_over_a_job() -> None:
    progress = []
    for name in PHASES:
        bench = Bench(name)
        bench.reporter.start()
        for step in range(1, 11):
            bench.step(step, 10, took=1)
        progress += [line.progress for line in bench.lines]
    assert progress == sorted(progress)
    assert progress[-1] == 100


def test_the_time_left_leaves_the_warm_up_out_and_adds_later_phases() -> None:
    bench = Bench(pace=Pace({"decode": 6.0, "publish": 1.0, "encode": 50.0}))
    bench.step(1, 5, took=30)
    bench.step(2, 5, took=2)
    bench.step(3, 5, took=2)
    assert [line.eta_s for line in bench.lines] == [None, 13.0, 11.0]
    assert bench.lines[-1].text == "denoising: 3 of 5, about 11 s left"


def test_quick_steps_are_checked_but_not_all_written() -> None:
    bench = Bench()
    for step in range(1, 101):
        bench.step(step, 100, took=0.01)
    written = [line.step for line in bench.lines]
    assert written[0] == 1
    assert written[-1] == 100
    assert len(written) < 10
    assert len(written) + bench.checks == 100


def test_a_lost_job_stops_at_the_next_step() -> None:
    class Lost(BaseException):
        pass

    def check() -> None:
        raise Lost

    reporter = Reporter("denoise", lambda _: None, check, Pace(), clock=lambda: 0.0)
    reporter.step(1, 10)
    with pytest.raises(Lost):
        reporter.step(2, 10)


def test_a_finished_phase_is_remembered() -> None:
    bench = Bench()
    bench.now += 9
    bench.reporter.done()
    assert bench.pace.after("encode") == 9.0
    assert bench.pace.after("denoise") == 0.0


def test_parts_of_a_phase_share_its_bar_and_count_their_steps_together() -> None:
    shares = [Share(0, 3, 0.0, 0.4), Share(1, 3, 0.4, 0.7), Share(2, 3, 0.7, 1.0)]
    lines: list[Event] = []
    for share in shares:
        bench = Bench(share=share)
        bench.reporter.start()
        for step in range(1, 5):
            bench.step(step, 4, took=1)
        lines += bench.lines
    progress = [line.progress for line in lines]
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (PHASES["denoise"].starts, PHASES["denoise"].ends)
    assert [line.step for line in lines if line.step] == list(range(1, 13))
    assert {line.steps for line in lines if line.step} == {12}
    assert [line.text for line in lines if not line.step] == [
        "denoising",
        "denoising, part 2 of 3",
        "denoising, part 3 of 3",
    ]


def test_the_time_left_of_a_part_has_the_parts_that_follow() -> None:
    bench = Bench(pace=Pace({"decode": 6.0}), share=Share(1, 3, 0.25, 0.5))
    bench.step(1, 5, took=30)
    bench.step(2, 5, took=2)
    assert bench.lines[-1].eta_s == 3 * 2 + 2 * 5 * 2 + 6  # three steps, twice as much again, the decode
    bench.now += 4
    bench.reporter.done()
    assert bench.pace.seconds["denoise"] == 4 * 36
