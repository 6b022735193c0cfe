"""Estimates from the jobs that finished."""

from __future__ import annotations

import pytest

from queue_fixtures import make_job
from wan_server.estimate import Estimator, work


def test_work_grows_with_pixels_and_seconds() -> None:
    small = make_job(input={"resolution": "720P", "duration": 5})
    large = make_job(input={"resolution": "1080P", "duration": 10})
    assert work(large) == pytest.approx(work(small) * 2.25 * 2)


def test_nothing_is_promised_before_the_first_job() -> None:
    assert Estimator(list).wait(make_job(), ahead=3, workers=1) is None


def test_the_wait_counts_those_ahead_and_shares_them_among_workers() -> None:
    job = make_job()
    estimator = Estimator(lambda: [(job, 10.0), (job, 12.0), (job, 90.0)])
    assert estimator.run(job) == pytest.approx(12.0)
    assert estimator.wait(job, ahead=4, workers=2) == pytest.approx(36.0)


def test_another_model_is_not_judged_by_this_one() -> None:
    job = make_job()
    assert Estimator(lambda: [(job, 10.0)]).run(make_job(model="other")) is None


def test_rates_are_read_again_after_a_while() -> None:
    job, now, finished = make_job(), [0.0], [(make_job(), 10.0)]
    estimator = Estimator(lambda: finished, clock=lambda: now[0])
    assert estimator.run(job) == pytest.approx(10.0)
    finished[:] = [(job, 20.0)]
    assert estimator.run(job) == pytest.approx(10.0)
    now[0] = 11.0
    assert estimator.run(job) == pytest.approx(20.0)
