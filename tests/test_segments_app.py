"""A video of several segments through HTTP, queue and worker, also when its worker is killed on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from front_end import APP
from mp4_facts import examine, ffmpeg_complaints
from running_tasks import completed, kill_worker, reached, submit, video_of
from server_process import Server, running_server

ROOT = Path(__file__).resolve().parents[1]
#: the embedded checkpoint, which goes on from samples of 33 frames here: 5 s are three of them
MODEL = "tiny-segments"
SEGMENTS = 3
STEPS = 2


def make_configs(folder: Path) -> Path:
    """A folder of configs with one profile more, on the weights that ship."""
    (folder / "models").mkdir(parents=True)
    text = (ROOT / "configs" / "models" / "tiny.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^steps = .*$", f"steps = {STEPS}", text)
    text = re.sub(r"(?m)^native_frames = .*$", "native_frames = 33", text)
    (folder / "models" / f"{MODEL}.toml").write_text(text, encoding="utf-8")
    (folder / MODEL).symlink_to(ROOT / "configs" / "tiny")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("segments")
    settings = {
        "WANBOX_CONFIG_DIR": str(make_configs(folder / "configs")),
        "WANBOX_MODELS": MODEL,
        "WANBOX_CHECKPOINT_EVERY_S": "0",
        "WANBOX_HEARTBEAT_S": "0.5",
    }
    with running_server(folder / "data", settings=settings) as running:
        yield running


def request(first_frame: Path, **given: Any) -> dict[str, Any]:
    values = {"prompt": "the camera pans left", "first_frame": str(first_frame), "duration": 5, "seed": 3, **given}
    return {"app": APP, "input": {"resolution": "720P", "prompt_extend": False, **values}}


@pytest.fixture(scope="module")
def whole(server: Server, first_frame: Path) -> dict[str, Any]:
    """The task of an undisturbed video."""
    return completed(server, submit(server, request(first_frame)))


def test_a_longer_video_is_exactly_as_long(whole: dict[str, Any], tmp_path: Path) -> None:
    video = video_of(whole, tmp_path / "v.mp4")
    facts = examine(video)
    assert (facts.width, facts.height, facts.frames, facts.fps) == (1280, 720, 80, 16)
    assert abs(facts.seconds - 5) < 0.001
    assert ffmpeg_complaints(video) == ""


def test_its_segments_are_told(whole: dict[str, Any]) -> None:
    (meta,) = whole["output"]["output_meta"]["outputs"]
    extra = meta["extra"]
    assert (extra["model"], extra["chaining"], len(extra["segments"])) == (MODEL, "prefix", SEGMENTS)
    ranges = [tuple(segment["frames"]) for segment in extra["segments"]]
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == 80
    assert extra["sampled_frames"] == sum(segment["sampled_frames"] for segment in extra["segments"])
    assert [segment["overlap_frames"] for segment in extra["segments"]] == [0, 9, 9]
    assert [segment["carried_latents"] for segment in extra["segments"]] == [0, 0, 0]
    assert len({segment["seed"] for segment in extra["segments"]}) == SEGMENTS
    assert all(set(segment["colour"]) == {"gain", "offset"} for segment in extra["segments"][1:])
    (note,) = extra["beyond_training"]
    assert note.startswith(f"input.duration: model {MODEL} makes 33 frames in one go; the video is 3 samples")


def test_progress_runs_over_all_segments(whole: dict[str, Any]) -> None:
    lines = [log["content"] for log in whole["logs"]]
    percent = [int(found[1]) for line in lines for found in re.finditer(r"\[ *(\d+)%\]", line)]
    assert percent == sorted(percent)
    steps = [int(n) for line in lines for n in re.findall(rf"denoising: (\d+) of {SEGMENTS * STEPS}", line)]
    assert steps == sorted(steps)
    assert steps[-1] == SEGMENTS * STEPS
    assert any("denoising, part 3 of 3" in line for line in lines)


@pytest.mark.slow
def test_a_killed_worker_goes_on_in_its_segment_and_makes_the_same_file(
    server: Server, whole: dict[str, Any], first_frame: Path, tmp_path: Path
) -> None:
    job = submit(server, request(first_frame))
    reached(server, job, 35, 80)
    kill_worker(server)
    again = completed(server, job)
    files = [video_of(task, tmp_path / f"{task['id']}.mp4").read_bytes() for task in (whole, again)]
    assert files[0] == files[1]
    lines = [log["content"] for log in again["logs"]]
    first = [line for line in lines if re.search(rf"denoising: [12] of {SEGMENTS * STEPS}", line)]
    assert len(first) <= 2  # the first segment was not made again
