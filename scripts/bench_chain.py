"""A video to a sound at 5, 10 and 15 s on this machine: CPU seconds by stage, and the peak memory of the process.

Each length runs in a process of its own on one thread, with the embedded `tiny-s2v`, from a picture and a sound to a
720p MP4. Clips are made one after the other, so the cost is to grow with their number and the memory not at all.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from wan_pipelines.plan import PlanRequest, make_plan
from wan_pipelines.profile import checkpoint_folder, load_profile
from wan_pipelines.renderer import Media, Renderer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SAMPLES = CONFIGS / "samples"
SECONDS = (5, 10, 15)


@dataclass(frozen=True, slots=True)
class Cost:
    """One video; CPU seconds of this process and its children."""

    seconds: int
    clips: int
    encode: float
    denoise: float
    decode: float
    #: GB of memory at most, after the weights were loaded and the video made
    peak: float

    @property
    def all(self) -> float:
        return self.encode + self.denoise + self.decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, help="measure this length alone and print it as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(asdict(measure(args.one))))
        return
    costs = [measure_apart(seconds) for seconds in SECONDS]
    title = f"tiny-s2v, CPU seconds, torch {torch.__version__}, one thread"
    head = ("video", "clips", "encode", "denoise", "decode and MP4", "all", f"against {SECONDS[0]} s", "peak memory")
    table = Table(*head, title=title)
    for cost in costs:
        parts = (f"{value:.1f}" for value in (cost.encode, cost.denoise, cost.decode, cost.all))
        more = f"{cost.all / costs[0].all:.2f}"
        table.add_row(f"{cost.seconds} s", str(cost.clips), *parts, more, f"{cost.peak:.2f} GB")
    Console(width=110).print(table)


def measure_apart(seconds: int) -> Cost:
    """In a process of its own, whose peak is that of this length alone."""
    command = [sys.executable, __file__, "--one", str(seconds)]
    return Cost(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure(seconds: int) -> Cost:
    """One video from the samples to a file."""
    torch.set_num_threads(1)
    profile = load_profile("tiny-s2v", CONFIGS)
    media = Media(SAMPLES / "face.png", driving_audio=SAMPLES / "speech.wav")
    renderer = Renderer.load(profile, checkpoint_folder(profile, CONFIGS, CONFIGS), "cpu")
    plan = make_plan(profile, PlanRequest("a face speaks", None, "720P", 16 / 9, seconds, 1, media=tuple(media.files)))
    with tempfile.TemporaryDirectory() as scratch:
        told, made, video = (Path(scratch) / name for name in ("conditions", "latents", "video.mp4"))
        encode = cpu_seconds(lambda: renderer.encode(plan, media, told, nothing))
        denoise = cpu_seconds(lambda: renderer.denoise(plan, told, made, nothing))
        decode = cpu_seconds(lambda: renderer.decode(plan, made, video, media.driving_audio, nothing))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return Cost(seconds, len(plan.clips.clips) if plan.clips else 1, encode, denoise, decode, peak)


def cpu_seconds(work: Callable[[], object]) -> float:
    def now() -> float:
        uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(use.ru_utime + use.ru_stime for use in uses)

    start = now()
    work()
    return now() - start


def nothing(*args: object) -> None:
    """Progress that nobody follows."""


if __name__ == "__main__":
    main()
