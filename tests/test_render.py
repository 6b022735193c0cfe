"""`wanbox render` as a person runs it: a batch with a good, a bad and a repeated run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from media_samples import make_image
from server_process import clean_environment


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
    bad = {"name": "bad", "input": {**good["input"], "duration": 20}}
    jobs, out = write(tmp_path / "jobs.jsonl", good, bad), tmp_path / "out"

    first = render(jobs, out)
    assert first.returncode == 1
    assert "1 of 2 jobs are done" in first.stderr
    assert manifest(out, "bad")["error"].startswith("input.duration:")
    with av.open(str(out / "good.mp4")) as video:
        assert video.streams.video[0].frames == 32
    made = manifest(out, "good")
    assert made["status"] == "completed"
    assert made["output_meta"]["outputs"][0]["extra"]["seed"] == 1
    stamp = (out / "good.mp4").stat().st_mtime_ns

    write(jobs, good, {**bad, "input": good["input"] | {"seed": 2}})
    second = render(jobs, out)
    assert (second.returncode, manifest(out, "bad")["status"]) == (0, "completed")
    assert (out / "good.mp4").stat().st_mtime_ns == stamp
    assert manifest(out, "good") == made


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
