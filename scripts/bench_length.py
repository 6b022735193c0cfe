"""Videos of several lengths on this machine: CPU seconds and peak memory of each, against the first.

Each length runs in a process of its own, on one thread: encode, denoise, decode and MP4 at 720P, as a job does. The
model is one without a download.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from wan_pipelines.plan import PlanRequest, make_plan
from wan_pipelines.profile import Profile, checkpoint_folder, load_profile
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.whole import sample_whole

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--native", type=int, help="most frames of a segment; 0: in one go; else the profile's")
    parser.add_argument("--seconds", type=int, nargs="+", default=[5, 10, 15])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(profile_of(args.model, args.native), args.one)))
        return
    table = Table("video", "samples", "to latents", "decode and MP4", "all", "ratio", "peak memory", title=args.model)
    found = [measured_apart(args.model, args.native, seconds) for seconds in args.seconds]
    for seconds, row in zip(args.seconds, found, strict=True):
        total, first = (one["latents_s"] + one["video_s"] for one in (row, found[0]))
        times = (f"{value:.1f}" for value in (row["latents_s"], row["video_s"], total))
        table.add_row(f"{seconds} s", str(row["samples"]), *times, f"{total / first:.2f}", f"{row['peak_gb']:.2f} GB")
    Console(width=110).print(table)


def profile_of(name: str, native: int | None) -> Profile:
    profile = load_profile(name, CONFIGS)
    if native is None:
        return profile
    return replace(profile, chaining="prefix" if native else None, native_frames=native or None)


def measured_apart(model: str, native: int | None, seconds: int) -> dict[str, float]:
    """`measure` in a process of its own, so that its peak is its own too."""
    command = [sys.executable, __file__, "--model", model, "--one", str(seconds)]
    command += [] if native is None else ["--native", str(native)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(profile: Profile, seconds: int) -> dict[str, float]:
    """One video: how many samples, CPU seconds to its latents and from there to the file, peak memory in GB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        renderer = Renderer.load(profile, checkpoint_folder(profile, folder, CONFIGS), "cpu")
        Image.radial_gradient("L").convert("RGB").resize((1280, 720)).save(folder / "first.png")
        plan = make_plan(profile, PlanRequest("waves on a beach", None, "720P", 16 / 9, seconds, seed=1))
        began = cpu_seconds()
        latents = sample_whole(renderer, plan, Media(folder / "first.png"), folder)
        between = cpu_seconds()
        renderer.decode(plan, latents, folder / "video.mp4", None, lambda done, frames: None)
        ended = cpu_seconds()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"samples": len(plan.parts), "latents_s": between - began, "video_s": ended - between, "peak_gb": peak}


def cpu_seconds() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


if __name__ == "__main__":
    main()
