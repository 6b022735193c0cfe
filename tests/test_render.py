"""`wanbox render` as a person runs it: a batch of both apps with good and bad jobs, and a repeated run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from media_samples import make_image
from mp4_facts import examine
from server_process import clean_environment

TEXT_APP = "alibaba/wan-2-7-t2v"


def render(jobs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wan_server.cli", "render", str(jobs), "--out", str(out)]
    return subprocess.run(
        command, env=clean_environment(), cwd=jobs.parent, capture_output=True, text=True, timeout=180, check=False
    )


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def manifest(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.slow
def test_a_batch_is_rendered_resumed_and_mended(tmp_path: Path) -> None:
    make_image(tmp_path / "sea.png", (640, 360), "PNG")
    good = {"name": "good", "input": {"first_frame": "sea.png", "resolution": "720P", "duration": 2, "seed": 1}}
    words = {"prompt": "a sea", "resolution": "720P", "duration": 2, "seed": 2}
    bad = {"name": "words", "app": TEXT_APP, "input": {**words, "duration": 20}}
    blank = {"name": "blank", "app": TEXT_APP, "input": {"resolution": "720P"}}
    jobs, out = write(tmp_path / "jobs.jsonl", good, bad, blank), tmp_path / "out"

    first = render(jobs, out)
    assert first.returncode == 1
    assert "1 of 3 jobs are done" in first.stderr
    assert manifest(out, "words")["error"].startswith("input.duration:")
    assert manifest(out, "blank")["error"] == "input.prompt: is required"
    assert examine(out / "good.mp4").frames == 32
    made = manifest(out, "good")
    assert made["status"] == "completed"
    assert made["output_meta"]["outputs"][0]["extra"]["seed"] == 1
    stamp = (out / "good.mp4").stat().st_mtime_ns

    write(jobs, good, {**bad, "input": words})
    second = render(jobs, out)
    assert second.returncode == 0, second.stderr
    assert (out / "good.mp4").stat().st_mtime_ns == stamp
    assert manifest(out, "good") == made
    mended = manifest(out, "words")
    assert (mended["status"], mended["app"], mended["video"]) == ("completed", TEXT_APP, "words.mp4")
    assert mended["output_meta"]["outputs"][0]["extra"]["task_type"] == "text"
    assert examine(out / "words.mp4").frames == 32


def test_results_never_overwrite_what_they_are_made_from(tmp_path: Path) -> None:
    jobs = write(tmp_path / "job.json", {"prompt": "a sea"})
    refused = render(jobs, tmp_path)
    assert refused.returncode == 2
    assert "would overwrite" in refused.stderr
    assert json.loads(jobs.read_text()) == {"prompt": "a sea"}


def test_an_unreadable_batch_is_refused_at_once(tmp_path: Path) -> None:
    refused = render(write(tmp_path / "jobs.jsonl"), tmp_path / "out")
    assert refused.returncode == 2
    assert "holds no job" in refused.stderr
