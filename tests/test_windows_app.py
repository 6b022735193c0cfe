"""A video from text alone that is longer than its model knows, through HTTP, queue and worker to an MP4."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mp4_facts import examine, ffmpeg_complaints
from running_tasks import completed, submit, video_of
from server_process import Server, running_server

APP = "alibaba/wan-2-7-t2v"
#: a random miniature that knows text alone and 81 frames: 10 s are three windows
MODEL = "tiny-t2v"
WINDOWS, STEPS = 3, 2
PROFILE = f"""
title = "Tiny T2V (random weights)"
weights = "tiny random checkpoint, text alone"
weights_from = "random"
licence = "Apache-2.0"
conditioning = "text"
inputs = []
text_only = true
fps = 16
max_frames = 241
native_frames = 81
trained_frames = 81
chaining = "windows"
size_multiple = 16
sample_pixels = 4096
sampler = "unipc"
steps = {STEPS}
shift = 8.0
guidance_high = 6.0
guidance_low = 6.0
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("windows")
    models = folder / "configs" / "models"
    models.mkdir(parents=True)
    (models / f"{MODEL}.toml").write_text(PROFILE, encoding="utf-8")
    settings = {"WANBOX_CONFIG_DIR": str(folder / "configs"), "WANBOX_MODELS": MODEL}
    with running_server(folder / "data", settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def task(server: Server) -> dict[str, Any]:
    given = {"prompt": "a calm sea", "resolution": "720P", "duration": 10, "prompt_extend": False, "seed": 3}
    return completed(server, submit(server, {"app": APP, "input": given}))


def test_the_app_promises_fifteen_seconds(server: Server) -> None:
    app = httpx.get(f"{server.base_url}/apps/{APP}").raise_for_status().json()["data"]
    assert app["version"]["metadata"]["abilities"] == [{"inputs": [], "models": {MODEL: 15}}]


def test_the_video_is_exactly_as_long_as_asked(task: dict[str, Any], tmp_path: Path) -> None:
    video = video_of(task, tmp_path / "v.mp4")
    facts = examine(video)
    assert (facts.width, facts.height, facts.frames, facts.fps) == (1280, 720, 160, 16)
    assert abs(facts.seconds - 10) < 0.001
    assert ffmpeg_complaints(video) == ""


def test_its_windows_are_told(task: dict[str, Any]) -> None:
    (meta,) = task["output"]["output_meta"]["outputs"]
    extra = meta["extra"]
    assert (extra["chaining"], extra["steps"], extra["sampled_frames"]) == ("windows", STEPS, 161)
    assert extra["windows"] == [{"frames": [0, 65]}, {"frames": [49, 113]}, {"frames": [97, 160]}]
    assert extra["overlap_frames"] == 16
    (note,) = extra["beyond_training"]
    assert f"the video was made in {WINDOWS} windows that overlap" in note


def test_progress_counts_the_windows_of_all_steps(task: dict[str, Any]) -> None:
    lines = [log["content"] for log in task["logs"]]
    steps = [int(n) for line in lines for n in re.findall(rf"denoising: (\d+) of {WINDOWS * STEPS}", line)]
    assert steps == sorted(steps)
    assert steps[-1] == WINDOWS * STEPS
