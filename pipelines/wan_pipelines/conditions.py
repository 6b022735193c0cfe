"""Media to conditioning: what each family of models is told about the pictures that a video begins and ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel

from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.clip_vision import embed_pictures
from wan_pipelines.conditioning import (
    Conditioning,
    condition_video,
    prepare_clean,
    prepare_concat,
    prepare_reference,
)
from wan_pipelines.errors import CheckpointError, RenderError
from wan_pipelines.framing import condition_image, visible
from wan_pipelines.load import Checkpoint
from wan_pipelines.pixels import load_image
from wan_pipelines.plan import RenderPlan
from wan_pipelines.profile import TEMPORAL_STRIDE, Profile
from wan_pipelines.s2v.ending import STILL_FRAMES
from wan_pipelines.segments import PREFIX, Chaining, latents_of
from wan_pipelines.vace import prepare_vace
from wan_pipelines.vae import encode_frames

T = TypeVar("T")
Beat = Callable[[], None]
#: states of the prompt and of the negative one, None when that is not used
Texts = tuple[Tensor, Tensor | None]
#: latents of known frames at the start, a known last frame if any, and grey between, so many frames in all
Encode = Callable[[Tensor, Tensor | None, int], Tensor]

#: the cross attention with CLIP states counts the text from its end, by this number (diffusers, WanAttnProcessor)
TEXT_BESIDE_CLIP = 512


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What became of the texts; goes into output_meta."""

    prompt_tokens: int
    #: tokens at the end of the prompt that the model does not see
    prompt_tokens_dropped: int
    negative_tokens_dropped: int
    #: False when no expert is guided: the negative prompt has no effect
    negative_used: bool
    #: how the weights are kept for this plan, as `Placement.to_json` says it
    placement: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Media:
    """Local files that condition the video; without any it comes from the text alone."""

    first_frame: Path | None = None
    last_frame: Path | None = None
    first_clip: Path | None = None
    #: for a model that listens; for others it is only the video's sound track
    driving_audio: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files that are given, by role."""
        paths = {name: getattr(self, name) for name in self.__slots__}
        return {role: path for role, path in paths.items() if path is not None}

    @property
    def pictures(self) -> int:
        """Pictures and clips among them."""
        return len(self.files.keys() - {"driving_audio"})

    def digest(self) -> str:
        """Changes when any file's bytes or role do."""
        digest = hashlib.sha256()
        for role, path in self.files.items():
            with path.open("rb") as file:
                digest.update(role.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the sample, as the model sees it: in [-1, 1], on the device."""

    #: frames at the start [n, 3, H, W]; n is 4m+1, or 0 when only text is known
    prefix: Tensor
    #: the last frame [3, H, W]
    last: Tensor | None
    #: frames of the whole sample, 4n+1
    frames: int
    #: latents that are known behind those of the prefix [1, z, n, h, w]
    latents: Tensor | None = None
    #: the frame that the new ones go on from [1, 3, H, W], where `prefix` does not end with it
    final: Tensor | None = None
    #: what of this the mask calls known, and what stands where nothing is
    chaining: Chaining = PREFIX

    @property
    def known_frames(self) -> int:
        """Frames at the start that are called known: 4m+1, or 0."""
        count = latents_of(len(self.prefix)) + (0 if self.latents is None else self.latents.shape[2])
        frames = max(0, TEMPORAL_STRIDE * (count - 1) + 1)
        return frames if self.chaining.known == "overlap" else min(1, frames)

    def put(self, encoded: Tensor) -> Tensor:
        """Encoded frames [1, z, T, h, w] with the latents that are known, and with zeros if those are for the rest."""
        if self.latents is None and self.chaining.rest == "grey":
            return encoded
        pieces = [encoded[:, :, : latents_of(len(self.prefix))], *([] if self.latents is None else [self.latents])]
        rest = encoded[:, :, sum(piece.shape[2] for piece in pieces) :]
        if self.chaining.rest == "zeros":
            rest = torch.cat([torch.zeros_like(rest[:, :, 1:]), rest[:, :, -1:] * (self.last is not None)], dim=2)
        return torch.cat([*pieces, rest], dim=2)


@dataclass(frozen=True, slots=True)
class Family:
    """One way of telling a model what is known."""

    #: media that can be told in this way
    roles: frozenset[str]
    tell: Callable[[Texts, Known, Encode], Conditioning]


def check_family(profile: Profile, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError when the profile promises what its family or its weights cannot do."""
    if beyond := sorted(set(profile.inputs) - FAMILIES[profile.conditioning].roles):
        raise CheckpointError(
            f"model {profile.name}: conditioning {profile.conditioning} has no place for {', '.join(beyond)}"
        )
    if profile.clip_pictures and checkpoint.image_encoder is None:
        raise CheckpointError(f"model {profile.name} needs an image encoder, which its weights do not have")
    if profile.clip_pictures and profile.text_len != TEXT_BESIDE_CLIP:
        raise CheckpointError(f"model {profile.name}: text_len must be {TEXT_BESIDE_CLIP} beside an image encoder")
    if profile.conditioning == "s2v":
        _check_motion(profile, checkpoint)


def read_known(plan: RenderPlan, media: Media, device: torch.device, beat: Beat) -> Known:
    """The media as frames of the sample. `beat` is called for each frame of a clip. Raises RenderError."""
    check_clip(plan, media.first_clip)
    prefix = _frames(_prefix_pictures(plan, media, beat), plan).to(device)
    return Known(prefix, read_last(plan, media, device), plan.sample_frames, chaining=plan.chaining or PREFIX)


def read_last(plan: RenderPlan, media: Media, device: torch.device) -> Tensor | None:
    """The last frame as the model sees it, where the sample has to end with it: [3, H, W]. Raises RenderError."""
    if media.last_frame is None or not all("last_frame" in segment.told for segment in plan.segments):
        return None
    return _frames([load_image(media.last_frame)], plan)[0].to(device)


def tell(profile: Profile, vae: AutoencoderKLWan, known: Known, texts: Texts, beat: Beat) -> Conditioning:
    """What the profile's family is told of texts and known frames. `beat` is called for each chunk of frames."""

    def encode(prefix: Tensor, last: Tensor | None, frames: int) -> Tensor:
        return encode_frames(vae, beating(condition_video(prefix, last, frames), beat))

    return FAMILIES[profile.conditioning].tell(texts, known, encode)


def show(profile: Profile, encoder: CLIPVisionModel, plan: RenderPlan, known: Known) -> Tensor:
    """CLIP states of what is shown of the frames that the new ones go on from and lead to: [pictures, tokens, D].

    Raises RenderError when one of them is not known.
    """
    ends = [known.prefix[-1:] if known.final is None else known.final] + (
        [] if known.last is None else [known.last[None]]
    )
    pictures = torch.cat(ends[: profile.clip_pictures])
    if len(pictures) != profile.clip_pictures:
        raise RenderError(f"model {profile.name} must see {profile.clip_pictures} pictures (got {len(pictures)})")
    return embed_pictures(encoder, visible(pictures, plan))


def check_clip(plan: RenderPlan, clip: Path | None) -> None:
    """Raises RenderError when the plan was made for other media."""
    if (clip is None) != (plan.clip_frames == 0):
        raise RenderError(f"the plan counts {plan.clip_frames} frames of first_clip, which is not what came with it")


def _check_motion(profile: Profile, checkpoint: Checkpoint) -> None:
    """The audio encoder inside the transformer counts the frames before a clip as the chain does."""
    found = checkpoint.experts.high.config["motion_frames"]
    if found != profile.motion_frames:
        raise CheckpointError(
            f"model {profile.name}: the transformer is told of {found} frames before a clip, "
            f"the profile says {profile.motion_frames}"
        )


def beating(items: Iterable[T], beat: Beat) -> Iterator[T]:
    """The same items, with a beat before each."""
    for item in items:
        beat()
        yield item


def _tell_text(texts: Texts, known: Known, encode: Encode) -> Conditioning:
    return Conditioning(*texts)


def _tell_concat(texts: Texts, known: Known, encode: Encode) -> Conditioning:
    latents = known.put(encode(known.prefix, known.last, known.frames))
    return prepare_concat(*texts, latents, prefix_frames=known.known_frames, with_last=known.last is not None)


def _tell_clean(texts: Texts, known: Known, encode: Encode) -> Conditioning:
    if not len(known.prefix):
        return Conditioning(*texts)
    return prepare_clean(*texts, known.put(encode(known.prefix, None, len(known.prefix))))


def _tell_vace(texts: Texts, known: Known, encode: Encode) -> Conditioning:
    inactive = known.put(encode(known.prefix, known.last, known.frames))
    reactive = encode(known.prefix[:0], None, known.frames)
    return prepare_vace(*texts, inactive, reactive, prefix_frames=known.known_frames, with_last=known.last is not None)


def _tell_s2v(texts: Texts, known: Known, encode: Encode) -> Conditioning:
    reference = encode(known.prefix, None, len(known.prefix))
    if known.last is None:
        return prepare_reference(*texts, reference)
    still = known.last.expand(STILL_FRAMES, -1, -1, -1)
    return prepare_reference(*texts, reference, encode(still, None, STILL_FRAMES)[:, :, -1:])


FAMILIES = MappingProxyType(
    {
        "text": Family(frozenset(), _tell_text),
        "concat": Family(frozenset({"first_frame", "last_frame", "first_clip"}), _tell_concat),
        "expand_timesteps": Family(frozenset({"first_frame", "first_clip"}), _tell_clean),
        "vace": Family(frozenset({"first_frame", "last_frame", "first_clip"}), _tell_vace),
        "s2v": Family(frozenset({"first_frame", "last_frame", "driving_audio"}), _tell_s2v),
    }
)


def _frames(pictures: Iterable[Image.Image], plan: RenderPlan) -> Tensor:
    """[n, 3, sample height, sample width] in [-1, 1]; n may be 0."""
    frames = [condition_image(picture, plan) for picture in pictures]
    return torch.stack(frames) if frames else torch.empty(0, 3, plan.sample_height, plan.sample_width)


def _prefix_pictures(plan: RenderPlan, media: Media, beat: Beat) -> Iterator[Image.Image]:
    """The pictures that the model is shown at the start: the first frame, or the end of the clip."""
    if media.first_frame is not None:
        yield load_image(media.first_frame)
    if media.first_clip is not None:
        shown = beating(shown_frames(media.first_clip, plan.fps, plan.clip_frames), beat)
        yield from (upright(frame) for frame in islice(shown, plan.clip_frames - plan.prefix_frames, None))
