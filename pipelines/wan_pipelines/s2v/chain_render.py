"""A video of clips that follow each other: denoised one by one, each told how the one before it ended.

Source: Wan-Video/Wan2.2 42bf4cf, wan/speech2video.py (WanS2V.generate): the decoded end of a clip is encoded again as
the motion latents of the next. Latents of all clips wait on the CPU, 40 MB for 5 s of 720P; pixels are made a clip at a
time, so nothing on the device grows with the duration. What is decoded for that end is kept for the video (`shown.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from wan_pipelines.conditioning import Conditioning
from wan_pipelines.errors import RenderError
from wan_pipelines.framing import frames_between
from wan_pipelines.peaks import Stage
from wan_pipelines.profile import TEMPORAL_STRIDE
from wan_pipelines.s2v.clips import Chain, Clip
from wan_pipelines.s2v.shown import ShownFrames, from_bytes, in_bytes
from wan_pipelines.vae import encode_frames, stream_decode

#: latents [1, z, 1, h, w] of the picture that every clip shows, among those of the clips
REFERENCE = "reference"
#: denoises one clip with what it is told: [1, z, T, h, w]
Sample = Callable[[Clip, Conditioning], Tensor]


@dataclass(frozen=True, slots=True)
class ChainRender:
    """The clips of one video and the autoencoder that they go through. Everything that is kept lies on the CPU."""

    chain: Chain
    vae: AutoencoderKLWan
    device: torch.device
    #: inside, what computes in a stage is on the device
    stage: Callable[[Stage], AbstractContextManager[None]]
    #: where frames are kept on the way; with it all frames are rounded to 8 bits
    shown: ShownFrames | None = None

    def denoise(
        self, conditions: Conditioning, held: dict[str, Tensor], sample: Sample, beat: Callable[[], None]
    ) -> dict[str, Tensor]:
        """Latents and motion latents of all clips, and the reference: what `frames` needs.

        `conditions` has the sound of all clips. `held` is filled on the way; what is in it already is not made again.
        `beat` is called between pieces of work of the autoencoder and may raise.
        """
        if conditions.reference is None or conditions.audio is None:
            raise RenderError("the conditions of a chain of clips have no reference or no sound")
        held[REFERENCE] = conditions.reference.cpu()
        heard = conditions.audio.split([clip.sampled for clip in self.chain.clips], dim=-1)
        for clip, audio in zip(self.chain.clips, heard, strict=True):
            if latents_name(clip.number) in held:
                continue
            if self._is_moved(clip) and motion_name(clip.number) not in held:
                held[motion_name(clip.number)] = self._motion(clip, held, beat)
            motion = held.get(motion_name(clip.number))
            told = replace(conditions, audio=audio, motion=None if motion is None else motion.to(self.device))
            held[latents_name(clip.number)] = sample(clip, self._steered(clip, told)).cpu()
        return held

    def frames(self, made: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The frames of the video, as [f, 3, H, W] in [0, 1] on the device; a chunk may be empty."""
        for clip in self.chain.clips:
            kept = self.shown.get(clip.number, self._decoder_input(clip, made)) if self.shown else None
            if kept is not None:
                yield from (from_bytes(chunk.to(self.device)) for chunk in kept.split(TEMPORAL_STRIDE))
                continue
            for chunk in self._decoded(clip, made):
                yield from_bytes(in_bytes(chunk)) if self.shown else chunk

    def _steered(self, clip: Clip, told: Conditioning) -> Conditioning:
        """With the noise levels down to which the last clip is steered, where the video has to end on a picture."""
        if told.ending is None or clip != self.chain.clips[-1]:
            return told
        levels = torch.tensor(self.chain.free_below, dtype=torch.float32, device=self.device)
        return replace(told, free_below=levels)

    def _decoder_input(self, clip: Clip, made: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Latents of what a clip was told of, and its own."""
        before = made[motion_name(clip.number) if self._is_moved(clip) else REFERENCE]
        return before, made[latents_name(clip.number)]

    def _decoded(self, clip: Clip, made: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The frames that a clip shows, decoded behind what it was told of; what follows is not computed."""
        before, own = self._decoder_input(clip, made)
        latents = torch.cat([before, own], dim=2).to(self.device)
        skipped = 1 + TEMPORAL_STRIDE * (before.shape[2] - 1)
        return frames_between(stream_decode(self.vae, latents), skipped + clip.shown.start, skipped + clip.shown.stop)

    def _motion(self, clip: Clip, made: Mapping[str, Tensor], beat: Callable[[], None]) -> Tensor:
        """Latents [1, z, M, h, w] of the frames before a clip, decoded from the clip before it."""
        pixels = self._before(clip, made, beat)  # [3, 4m + 1, H, W]
        first, *rest = pixels[:, :1], *pixels[:, 1:].split(TEMPORAL_STRIDE, dim=1)

        def chunks() -> Iterator[Tensor]:
            for chunk in (first, *rest):
                beat()
                yield chunk[None].to(self.device)

        with self.stage("encode"):
            return encode_frames(self.vae, chunks()).cpu()

    def _before(self, clip: Clip, made: Mapping[str, Tensor], beat: Callable[[], None]) -> Tensor:
        """The frames before a clip, [3, n, H, W] in [-1, 1] on the CPU: grey ones, then the end of the last clip."""
        grey, known = clip.motion(self.chain.spec.motion_frames)
        if not known:
            height, width = (side * self.vae.config["scale_factor_spatial"] for side in made[REFERENCE].shape[3:])
            return torch.zeros(3, grey, height, width)
        last = self.chain.clips[clip.number - 1]
        if grey or known.start < last.start:
            raise RenderError(f"clip {clip.number} is told of more frames than the clip before it has")
        pieces, kept, early = [], [], known.start - last.start
        with self.stage("decode"):
            for chunk in self._decoded(last, made):
                beat()
                if self.shown:
                    kept.append(in_bytes(chunk).cpu())
                if early < len(chunk):
                    pieces.append(chunk[max(0, early) :].cpu())
                early -= len(chunk)
        if self.shown:
            self.shown.put(last.number, self._decoder_input(last, made), kept)
        return torch.cat(pieces).transpose(0, 1) * 2 - 1

    def _is_moved(self, clip: Clip) -> bool:
        """Whether a clip is told of motion: all but a first one that drops its spoiled frames instead."""
        return clip.number > 0 or not self.chain.spec.lead_frames


def latents_name(number: int) -> str:
    """The key of a clip's latents."""
    return f"latents.{number}"


def motion_name(number: int) -> str:
    """The key of the latents of what came before a clip."""
    return f"motion.{number}"
