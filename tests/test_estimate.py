"""How long jobs take: their work counted from plans, the speed from the jobs that finished."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from wan_server.estimate import SPEEDS, Estimator, Workload
from wan_server.ids import new_id
from wan_server.job import Job
from wan_server.settings import load_settings

A14B = "wan2.2-i2v-a14b"


@pytest.fixture
def work(tmp_path: Path) -> Workload:
    return Workload(load_settings(data_dir=tmp_path / "data"))


def make_job(
    model: str = "tiny", seconds: int = 5, resolution: str = "720P", role: str = "first_frame", **options: Any
) -> Job:
    wish = {"prompt": "a sea", "resolution": resolution, "duration": seconds}
    return Job(
        id=new_id(),
        app="alibaba/wan-2-7-i2v",
        model=model,
        input=wish,
        seed=7,
        base_url="http://127.0.0.1",
        created_at=time.time(),
        files={role: new_id()},
        remote={},
        options=options,
    )


def ratio(work: Workload, large: Job, small: Job) -> float:
    sizes = [work.of(job) for job in (large, small)]
    assert sizes[0] is not None
    assert sizes[1] is not None
    return sizes[0] / sizes[1]


def test_a_large_picture_is_weighed_by_the_way_it_is_made(tmp_path: Path):
    """2.25 times the pixels: twice the work in two passes, over four times directly, as attention sees all pairs."""
    small, large = make_job(A14B), make_job(A14B, resolution="1080P")
    found = {}
    for route in ("profile", "refine", "direct"):
        work = Workload(load_settings(data_dir=tmp_path, hd_route=route))
        found[route] = ratio(work, large, small)
    assert found["profile"] == found["refine"] == pytest.approx(2.1, abs=0.1)
    assert found["direct"] == pytest.approx(4.3, abs=0.1)


def test_a_long_video_is_weighed_by_its_segments(work: Workload):
    assert ratio(work, make_job(A14B, 15), make_job(A14B, 5)) == pytest.approx(2.94, abs=0.05)


def test_what_a_clip_has_already_is_no_work(work: Workload):
    unmeasured = make_job(A14B, 12, role="first_clip")
    short, long = (make_job(A14B, 12, role="first_clip", clip_seconds=seconds) for seconds in (2.0, 9.0))
    assert ratio(work, unmeasured, short) == pytest.approx(1)  # every clip has two seconds
    assert 0.2 < ratio(work, long, short) < 0.5


def test_presets_are_weighed_by_their_forwards(work: Workload):
    """Four forwards in place of eighty."""
    assert ratio(work, make_job(A14B), make_job(f"{A14B}:fast")) == pytest.approx(20, rel=0.1)


def test_a_scaled_video_costs_its_file(work: Workload):
    """The embedded model samples at one size; only the file is larger at 1080P."""
    assert 1.1 < ratio(work, make_job(resolution="1080P"), make_job()) < 1.6


def test_weights_that_are_still_to_be_made_count_as_their_file(work: Workload):
    assert ratio(work, make_job("tiny-ti2v", 10), make_job("tiny-ti2v", 5)) == pytest.approx(2)


@pytest.mark.parametrize("job", [make_job("gone"), make_job(seconds=99), make_job(resolution="480P")])
def test_what_cannot_be_planned_is_not_judged(work: Workload, job: Job):
    assert work.of(job) is None
    assert Estimator(lambda: [(job, 10.0)], work.of).wait(job, 0, ["cpu"]) is None


def test_before_the_first_job_the_device_is_what_is_known(work: Workload):
    job, estimator = make_job(A14B), Estimator(list, work.of)
    size = work.of(job)
    assert size is not None
    assert estimator.run(job, "cuda") == pytest.approx(size / SPEEDS["cuda"])
    assert 600 < (estimator.run(job, "cuda") or 0) < 3600  # an hour at most for 80 forwards of 6.5 PFLOP
    assert estimator.run(job) is None
    assert estimator.wait(job, 3, []) is None
    assert estimator.wait(job, 3, ["auto"]) is None
    assert estimator.wait(job, 1, ["cuda", "cpu"]) == pytest.approx(1.5 * size / SPEEDS["cpu"])


def test_the_first_job_decides_from_then_on(work: Workload):
    short, long = make_job(A14B, 5), make_job(A14B, 15)
    estimator = Estimator(lambda: [(short, 900.0)], work.of)
    assert estimator.run(long, "cuda") == pytest.approx(900 * ratio(work, long, short))


def test_the_wait_counts_those_ahead_and_shares_them_among_workers(work: Workload):
    job = make_job()
    estimator = Estimator(lambda: [(job, 10.0), (job, 12.0), (job, 90.0)], work.of)
    assert estimator.run(job) == pytest.approx(12.0)
    assert estimator.wait(job, ahead=4, devices=["cpu", "cpu"]) == pytest.approx(36.0)
    assert estimator.wait(job, ahead=0, devices=[]) == pytest.approx(12.0)


def test_another_model_is_not_judged_by_this_one(work: Workload):
    assert Estimator(lambda: [(make_job(), 10.0)], work.of).run(make_job("tiny-s2v")) is None


def test_rates_are_read_again_after_a_while(work: Workload):
    job, now, finished = make_job(), [0.0], [(make_job(), 10.0)]
    estimator = Estimator(lambda: finished, work.of, clock=lambda: now[0])
    assert estimator.run(job) == pytest.approx(10.0)
    finished[:] = [(job, 20.0)]
    assert estimator.run(job) == pytest.approx(10.0)
    now[0] = 11.0
    assert estimator.run(job) == pytest.approx(20.0)


def test_the_embedded_model_is_about_right_on_this_kind_of_machine(work: Workload):
    """Measured: 5 s in 15.6 CPU seconds on one thread (docs/performance.md); supposed are two cores."""
    supposed = Estimator(list, work.of).run(make_job(), "cpu")
    assert supposed == pytest.approx(15.6 / 2, rel=0.5)
