"""Three stages from a plan to a video file: encode, denoise, decode. Each reads and writes files.

A stage can be stopped at any callback and started again from its input file; `denoise` goes on from its last
checkpoint, with the same result to the last bit. Knows no queue: what calls it decides when and where.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wan_pipelines.conditioning import (
    Conditioning,
    condition_video,
    prepare_clean_first_frame,
    prepare_first_frame,
    prepare_first_last_frame,
)
from wan_pipelines.denoise import Guidance, denoise
from wan_pipelines.errors import RenderError
from wan_pipelines.framing import condition_image, first_frames, visible
from wan_pipelines.load import Checkpoint, ensure_checkpoint, load_checkpoint, silence_progress_bars
from wan_pipelines.mp4 import Mp4Spec, Mp4Writer, VideoFacts
from wan_pipelines.plan import RenderPlan
from wan_pipelines.profile import TEMPORAL_STRIDE, Profile
from wan_pipelines.resume import StepSaver, resume
from wan_pipelines.samplers import make_sampler
from wan_pipelines.tensorfile import load_tensors, read_metadata, save_tensors
from wan_pipelines.text import TextStates, encode_text
from wan_pipelines.vae import encode_frames, stream_decode


@dataclass(frozen=True, slots=True)
class Media:
    """Local image files that condition the video."""

    first_frame: Path | None
    last_frame: Path | None = None

    def digest(self) -> str:
        """Changes when any file's bytes do."""
        digest = hashlib.sha256()
        for path in (self.first_frame, self.last_frame):
            digest.update(hashlib.sha256(path.read_bytes()).digest() if path else b"none")
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What became of the texts; goes into output_meta."""

    prompt_tokens: int
    #: tokens at the end of the prompt that the model does not see
    prompt_tokens_dropped: int
    negative_tokens_dropped: int
    #: False when no expert is guided: the negative prompt has no effect
    negative_used: bool


@dataclass(frozen=True, slots=True)
class Renderer:
    """A loaded checkpoint that renders plans, one at a time."""

    profile: Profile
    checkpoint: Checkpoint
    device: torch.device
    #: seconds between two checkpoints of the denoise loop; 0 writes one after every step
    checkpoint_every_s: float = 30.0

    @classmethod
    def load(
        cls, profile: Profile, folder: Path, device: str, dtype: str | None = None, checkpoint_every_s: float = 30.0
    ) -> Renderer:
        """Load the checkpoint in `folder` (the one with `model_index.json`), building an embedded one first.

        `device` is a torch device or "auto". Raises CheckpointError.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        silence_progress_bars()
        ensure_checkpoint(profile, folder)
        checkpoint = load_checkpoint(profile, folder, torch.device(device), dtype)
        return cls(profile, checkpoint, torch.device(device), checkpoint_every_s)

    @torch.inference_mode()
    def encode(self, plan: RenderPlan, media: Media, out: Path, beat: Callable[[], None]) -> EncodeReport:
        """Texts and images to conditions in `out`. `beat` is called between pieces of work and may raise."""
        self._check_plan(plan)
        beat()
        prompt = self._encode_text(plan.prompt)
        negative = self._encode_text(plan.negative_prompt) if plan.is_guided else None
        conditions = self._condition(plan, media, prompt, negative, beat)
        metadata = {"plan": plan.key, "media": media.digest()}
        save_tensors(out, conditions.tensors(), metadata)
        return EncodeReport(
            prompt_tokens=prompt.tokens,
            prompt_tokens_dropped=prompt.dropped,
            negative_tokens_dropped=negative.dropped if negative else 0,
            negative_used=negative is not None,
        )

    @torch.inference_mode()
    def denoise(
        self,
        plan: RenderPlan,
        conditioning: Path,
        out: Path,
        on_step: Callable[[int, int], None],
        checkpoint: Path | None = None,
    ) -> None:
        """Noise to latents in `out`. `on_step(done, steps)` comes after each step and may raise.

        When `checkpoint` was written for the same plan and media, goes on from there; any other one is ignored.
        """
        self._check_plan(plan)
        metadata = _metadata_for(plan, conditioning)
        conditions = Conditioning(**load_tensors(conditioning, self.device))
        sampler = make_sampler(plan.sampler, plan.sigmas)
        latents = resume(sampler, checkpoint, metadata, self.device)
        if latents is None:
            latents = initial_noise(plan, self._latent_shape(plan)).to(self.device)
        saver = StepSaver(sampler, checkpoint, metadata, self.checkpoint_every_s)

        def after_step(done: int, current: Tensor) -> None:
            saver.offer(current)
            on_step(done, plan.steps)

        guidance = Guidance(plan.guidance_high, plan.guidance_low)
        result = denoise(self.checkpoint.experts, latents, conditions, sampler, guidance, after_step)
        save_tensors(out, {"latents": result}, metadata)

    @torch.inference_mode()
    def decode(
        self, plan: RenderPlan, latents: Path, out: Path, sound: Path | None, on_frames: Callable[[int, int], None]
    ) -> VideoFacts:
        """Latents to an MP4 in `out`. `on_frames(done, frames)` comes after each chunk and may raise."""
        self._check_plan(plan)
        _metadata_for(plan, latents)
        tensor = load_tensors(latents, self.device)["latents"]
        spec = Mp4Spec(plan.width, plan.height, plan.fps, plan.frames, sound=sound, watermark=plan.watermark)
        with Mp4Writer(out, spec) as writer:
            done = 0
            for chunk in first_frames(stream_decode(self.checkpoint.vae, tensor), plan.frames):
                writer.write(visible(chunk, plan))
                done += chunk.shape[0]
                on_frames(done, plan.frames)
        return writer.facts

    def _check_plan(self, plan: RenderPlan) -> None:
        if plan.model != self.profile.name:
            raise RenderError(f"the plan is for model {plan.model}, this worker has {self.profile.name}")

    def _encode_text(self, text: str) -> TextStates:
        parts = self.checkpoint
        return encode_text(parts.tokenizer, parts.text_encoder, text, self.profile.text_len)

    def _condition(
        self, plan: RenderPlan, media: Media, prompt: TextStates, negative: TextStates | None, beat: Callable[[], None]
    ) -> Conditioning:
        """Pick the `prepare_*` of this combination of inputs."""
        if media.first_frame is None:
            raise RenderError(f"model {self.profile.name} needs a first frame")
        first = condition_image(media.first_frame, plan).to(self.device)
        last = condition_image(media.last_frame, plan).to(self.device) if media.last_frame else None
        texts = prompt.states, negative.states if negative else None
        if self.profile.conditioning == "expand_timesteps":
            if last is not None:
                raise RenderError(f"model {self.profile.name} does not take a last frame")
            return prepare_clean_first_frame(*texts, self._encode_video(first, None, 1, beat))
        latents = self._encode_video(first, last, plan.sample_frames, beat)
        if last is None:
            return prepare_first_frame(*texts, latents)
        return prepare_first_last_frame(*texts, latents)

    def _encode_video(self, first: Tensor, last: Tensor | None, frames: int, beat: Callable[[], None]) -> Tensor:
        chunks = condition_video(first, last, frames)
        return encode_frames(self.checkpoint.vae, _beating(chunks, beat))

    def _latent_shape(self, plan: RenderPlan) -> tuple[int, ...]:
        vae, stride = self.checkpoint.vae, self.checkpoint.vae_stride
        frames = (plan.sample_frames - 1) // TEMPORAL_STRIDE + 1
        return 1, vae.config["z_dim"], frames, plan.sample_height // stride, plan.sample_width // stride


def initial_noise(plan: RenderPlan, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise in float32, drawn on the CPU so that a seed means the same on every device."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(plan.seed), dtype=torch.float32)


def _metadata_for(plan: RenderPlan, path: Path) -> dict[str, str]:
    """The file's metadata. Raises RenderError when it was made for another plan."""
    metadata = read_metadata(path)
    if metadata.get("plan") != plan.key:
        raise RenderError(f"{path.name} was made for another plan")
    return metadata


def _beating(chunks: Iterator[Tensor], beat: Callable[[], None]) -> Iterator[Tensor]:
    for chunk in chunks:
        beat()
        yield chunk
