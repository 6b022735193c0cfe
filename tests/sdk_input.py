"""Requests that the contract tests send, and what the answers must say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from mp4_facts import BT709, LIMITED_RANGE, examine, ffmpeg_complaints

APP = "alibaba/wan-2-7-i2v"
COMPLETED, CANCELLED, RUNNING, QUEUED = 10, 12, 7, 2
TERMINAL = (10, 11, 12)
SECONDS = 2


def request(first_frame: Any, **more: Any) -> dict[str, Any]:
    """`POST /apps/run` with the cheapest input that is valid; `more` is added beside `input`."""
    given = {
        "prompt": "hills at dawn, slow pan",
        "first_frame": first_frame if isinstance(first_frame, str) else str(first_frame),
        "resolution": "720P",
        "duration": SECONDS,
        "prompt_extend": False,
        "seed": 7,
    }
    return {"app": APP, "input": given, **more}


def later(seconds: float) -> str:
    """An ISO time from now, for `run_at`."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def check_video(output: Any, folder: Path) -> None:
    """The task's output is a playable MP4 of exactly what was asked for, and `output_meta` tells the truth about it."""
    meta = output["output_meta"]["outputs"][0]
    assert (meta["type"], meta["width"], meta["height"], meta["seconds"]) == ("video", 1280, 720, SECONDS)
    assert meta["extra"]["seed"] == 7
    assert meta["extra"]["task_type"] == "first frame"
    path = folder / "video.mp4"
    path.write_bytes(httpx.get(output["video"]).raise_for_status().content)
    facts = examine(path)
    assert (facts.codec, facts.pixel_format) == ("h264", "yuv420p")
    assert (facts.width, facts.height) == (1280, 720)
    assert facts.frames == SECONDS * meta["fps"] == meta["extra"]["frames"]
    assert facts.fps == meta["fps"]
    assert abs(facts.seconds - SECONDS) < 0.001
    assert facts.colour == (BT709, BT709, BT709, LIMITED_RANGE)
    assert facts.boxes.index("moov") < facts.boxes.index("mdat"), "not faststart"
    assert ffmpeg_complaints(path) == ""
