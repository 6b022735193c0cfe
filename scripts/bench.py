"""wanbox against diffusers on this machine: same weights, same inputs, same process, CPU seconds.

Each line is a pair that runs in turns, wanbox then diffusers, several rounds; the ratio is diffusers / wanbox of
each round, given as median and range. CPU seconds count this process and its children (ffmpeg); torch runs on one
thread, so that waiting threads are not counted as work. The models are tiny: trust the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from diffusers.utils.export_utils import export_to_video
from diffusers.video_processor import VideoProcessor
from PIL import Image
from rich.console import Console
from rich.table import Table

from wan_pipelines.conditioning import condition_video
from wan_pipelines.mp4 import Mp4Spec, Mp4Writer
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import checkpoint_folder, load_profile
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.tensorfile import load_tensors
from wan_pipelines.vae import encode_frames, stream_decode

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Pair:
    """The same job done twice."""

    title: str
    ours: Work
    theirs: Work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    title = f"CPU seconds, torch {torch.__version__}, one thread, {args.rounds} rounds"
    table = Table("pair", "wanbox", "diffusers", "ratio", "range", title=title)
    with tempfile.TemporaryDirectory() as scratch:
        for pair in pairs(Path(scratch), console):
            table.add_row(pair.title, *compare(pair, args.rounds))
    console.print(table)


def compare(pair: Pair, rounds: int) -> tuple[str, ...]:
    """Interleaved rounds after one unmeasured round."""
    pair.ours()
    pair.theirs()
    timed = [(cpu_seconds(pair.ours), cpu_seconds(pair.theirs)) for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*timed, strict=True))
    ratios = sorted(b / a for a, b in timed)
    return f"{ours:.2f}", f"{theirs:.2f}", f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} - {ratios[-1]:.2f}"


def cpu_seconds(work: Work) -> float:
    def now() -> float:
        uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(use.ru_utime + use.ru_stime for use in uses)

    start = now()
    work()
    return now() - start


def pairs(scratch: Path, console: Console) -> Iterator[Pair]:
    """Everything that is compared, set up one after the other."""
    for name in ("tiny", "tiny-ti2v"):
        with bench_model(name, scratch / name) as model:
            console.print(f"{name}: largest difference of the latents {model.difference():.1e}")
            yield Pair(f"{name} encode + denoise, {model.what}", model.ours, model.theirs)
    yield encode_pair(scratch)
    yield decode_pair(scratch)
    if importlib.util.find_spec("imageio"):
        yield mp4_pair(scratch)
    else:
        console.print("frames to MP4: skipped, diffusers' export_to_video needs imageio")


@dataclass(frozen=True, slots=True)
class BenchModel:
    """Our stages and diffusers' pipeline over one checkpoint."""

    renderer: Renderer
    pipeline: WanImageToVideoPipeline
    plan: RenderPlan
    image: Path
    scratch: Path

    @property
    def what(self) -> str:
        plan = self.plan
        return f"{plan.sample_width}x{plan.sample_height}x{plan.sample_frames}, {plan.steps} steps"

    def ours(self) -> torch.Tensor:
        conditioning, latents = self.scratch / "conditioning", self.scratch / "latents"
        self.renderer.encode(self.plan, Media(self.image), conditioning, lambda: None)
        self.renderer.denoise(self.plan, conditioning, latents, lambda done, steps: None)
        return load_tensors(latents, torch.device("cpu"))["latents"]

    @torch.inference_mode()
    def theirs(self) -> torch.Tensor:
        output = self.pipeline(
            image=Image.open(self.image),
            prompt=self.plan.prompt,
            negative_prompt=self.plan.negative_prompt,
            height=self.plan.sample_height,
            width=self.plan.sample_width,
            num_frames=self.plan.sample_frames,
            num_inference_steps=self.plan.steps,
            guidance_scale=self.plan.guidance_high,
            max_sequence_length=self.renderer.profile.text_len,
            generator=torch.Generator().manual_seed(self.plan.seed),
            output_type="latent",
        )
        return output.frames  # pyright: ignore[reportAttributeAccessIssue]

    def difference(self) -> float:
        return float((self.ours() - self.theirs()).abs().max())


@contextmanager
def bench_model(name: str, scratch: Path) -> Iterator[BenchModel]:
    """A five second plan of a profile without a download, with a picture of exactly the sampled size."""
    scratch.mkdir()
    renderer = load_renderer(name, scratch)
    profile = renderer.profile
    folder = checkpoint_folder(profile, scratch, CONFIGS)
    pipeline = WanImageToVideoPipeline.from_pretrained(folder, local_files_only=True)
    config = pipeline.scheduler.config
    pipeline.scheduler = type(pipeline.scheduler).from_config(config, flow_shift=profile.shift)
    pipeline.set_progress_bar_config(disable=True)
    plan = make_plan(profile, PlanRequest("waves on a beach", None, "720P", 1.0, 5, seed=1))
    picture = Image.radial_gradient("L").convert("RGB").resize((plan.sample_width, plan.sample_height))
    picture.save(scratch / "first.png")
    yield BenchModel(renderer, pipeline, plan, scratch / "first.png", scratch)


def load_renderer(name: str, scratch: Path) -> Renderer:
    """The profile's renderer on the CPU; random weights are made in `scratch` and found there again."""
    profile = load_profile(name, CONFIGS)
    return Renderer.load(profile, checkpoint_folder(profile, scratch, CONFIGS), "cpu")


def encode_pair(scratch: Path) -> Pair:
    """The condition video of 81 frames, of which 80 are grey: skipping what has settled against not."""
    vae = load_renderer("tiny", scratch).checkpoint.vae
    first = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1

    @torch.inference_mode()
    def encode(skip_settled: bool) -> None:
        encode_frames(vae, condition_video(first, None, 81), skip_settled=skip_settled)

    title = "condition encode, 128x128x81, against skip_settled=False"
    return Pair(title, lambda: encode(True), lambda: encode(False))


def decode_pair(scratch: Path) -> Pair:
    vae = load_renderer("tiny", scratch).checkpoint.vae
    latents = torch.randn(1, vae.config["z_dim"], 11, 16, 16, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def ours() -> None:
        for _ in stream_decode(vae, latents):
            pass

    @torch.inference_mode()
    def theirs() -> None:
        vae.decode(latents)

    return Pair("VAE decode, 128x128x41", ours, theirs)


def mp4_pair(scratch: Path, frames: int = 16) -> Pair:
    """720p frames in memory to a file; moving stripes, which compress like a plain scene."""
    x, y, t = (torch.linspace(0, 1, size) for size in (1280, 720, frames))
    wave = torch.sin(40 * (x + y[:, None]) + 6 * t[:, None, None])  # [F, H, W]
    video = torch.stack([wave, wave.roll(300, 2), -wave], dim=1) / 2 + 0.5  # [F, 3, H, W] in [0, 1]
    centred = (video * 2 - 1).transpose(0, 1)[None]  # [1, 3, F, H, W], what the pipeline hands on
    processor = VideoProcessor(vae_scale_factor=8)

    def ours() -> None:
        with Mp4Writer(scratch / "ours.mp4", Mp4Spec(1280, 720, 16, frames)) as writer:
            for chunk in video.split(4):
                writer.write(chunk)

    def theirs() -> None:
        export_to_video(processor.postprocess_video(centred)[0], str(scratch / "theirs.mp4"), fps=16)  # pyright: ignore[reportArgumentType]

    return Pair(f"frames to MP4, 1280x720x{frames}", ours, theirs)


if __name__ == "__main__":
    main()
