"""From one segment of a video to the next: what a sample is told of the one before, and all of them as one stream.

The end of the one before crosses as frames that are encoded again, or as the latents that they came from
(`segments.Chaining.carries`). Then only the first of those frames crosses as a picture: the first latent frame of a
sample stands for one frame, and no latent at the end of a sample does. Latents take a change of colour (`colour.py`) as
the difference that it makes to the encoded frames, so what encoding costs cancels out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from wan_pipelines.colour import COMPARED, SETTLING, Grade, Look, Slide, continued, towards
from wan_pipelines.conditions import Beat, Known, Texts, beating
from wan_pipelines.errors import RenderError
from wan_pipelines.framing import visible
from wan_pipelines.peaks import Stage
from wan_pipelines.plan import RenderPlan
from wan_pipelines.profile import TEMPORAL_STRIDE
from wan_pipelines.segments import Chaining, Segment, latents_of
from wan_pipelines.tensorfile import load_tensors, read_metadata, save_tensors
from wan_pipelines.vae import decode_end, encode_frames, stream_decode

CPU = torch.device("cpu")
#: rows of the mask before the condition latents
MASK_ROWS = 4
#: keys of a file's metadata
LOOK, GRADE, GRADES, END, KNOWN, BEGINS = "look", "grade", "grades", "end", "known_frames", "begins"


@dataclass(frozen=True, slots=True)
class Before:
    """Files that a segment goes on from."""

    #: conditions of the first segment: the texts, and the picture that the video begins with
    first: Path
    #: latents of the segment before
    latents: Path

    @property
    def metadata(self) -> dict[str, str]:
        """What stands beside the latents."""
        return read_metadata(self.latents)

    def texts(self, device: torch.device) -> Texts:
        """States of the prompt and of the negative one: the same for all segments."""
        tensors = load_tensors(self.first, device)
        return tensors["prompt"], tensors.get("negative")

    def anchor(self, device: torch.device) -> Tensor:
        """The first condition latent of the video [1, z, 1, h, w]. Raises RenderError without one."""
        tensors = load_tensors(self.first, device)
        if "concat" not in tensors:
            raise RenderError(f"{self.first.name} has no picture that the video is anchored to")
        return tensors["concat"][:, MASK_ROWS:, :1]

    def digest(self) -> str:
        """Changes when the segment before does."""
        with self.latents.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a segment begins, and the autoencoder that its prefix goes through."""

    #: of the segment that goes on (`RenderPlan.parts`)
    plan: RenderPlan
    vae: AutoencoderKLWan
    device: torch.device
    #: inside, what computes in a stage is on the device
    stage: Callable[[Stage], AbstractContextManager[None]]

    @property
    def segment(self) -> Segment:
        return self.plan.segments[0]

    def known(self, before: Before, last: Tensor | None, beat: Beat) -> tuple[Known, dict[str, str]]:
        """What is known of the sample besides the texts, and the colours, as metadata.

        `beat` is called between pieces of work and may raise. Raises RenderError.
        """
        chaining = _chaining(self.plan)
        made = load_tensors(before.latents, self.device)["latents"]
        with self.stage("decode"):
            look = self._look(before, made) if chaining.colour else None
            joined = self._join(before, made, beat)
            tail = torch.cat(list(beating(self._tail(made), beat)))[-self.segment.prefix_frames :]
        held = joined.apply(tail) if joined.changes else tail
        grade = Grade()
        if look is not None:
            grade = towards(look, Look.of(visible(held, self.plan)), chaining.colour)
        shown = grade.apply(held) if grade.changes else held
        frames = shown * 2 - 1
        carried = [before.anchor(self.device)] if "anchor" in self.segment.told else []
        if self.segment.carried:
            carried.append(self._carried(made, tail * 2 - 1, frames, beat))
        known = Known(
            prefix=frames[: len(self.segment.seen)],
            last=last,
            frames=self.plan.sample_frames,
            latents=torch.cat(carried, dim=2) if carried else None,
            final=frames[-1:],
            chaining=chaining,
        )
        colours = look_metadata(look) | {END: _json(Look.of(visible(shown[-COMPARED:], self.plan)))} if look else {}
        return known, {GRADE: _json(grade), **colours}

    def _tail(self, made: Tensor) -> Iterator[Tensor]:
        """The last frames of the segment before as [f, 3, H, W] in [0, 1]: those of the prefix, behind three others."""
        return decode_end(self.vae, made, latents_of(self.segment.prefix_frames))

    def _look(self, before: Before, made: Tensor) -> Look:
        """Of the picture that the video begins with; without one the first frame that was made is it."""
        noted = before.metadata.get(LOOK)
        if noted is not None:
            return Look.from_json(json.loads(noted))
        return Look.of(visible(next(stream_decode(self.vae, made[:, :, :1])), self.plan))

    def _join(self, before: Before, made: Tensor, beat: Beat) -> Grade:
        """How the segment before is joined to what it goes on from, as `colour.slid` does with what is shown."""
        noted = before.metadata.get(END)
        if noted is None:
            return Grade()
        first = int(before.metadata.get(KNOWN, _chaining(self.plan).overlap))
        latents = latents_of(first) + (SETTLING + COMPARED) // TEMPORAL_STRIDE
        if made.shape[2] < latents:  # so short that nothing has settled
            return Grade()
        decoded = decode_end(self.vae, made[:, :, :latents], COMPARED // TEMPORAL_STRIDE)
        settled = visible(torch.cat(list(beating(decoded, beat))), self.plan)
        return continued(Look.from_json(json.loads(noted)), settled)

    def _carried(self, made: Tensor, tail: Tensor, told: Tensor, beat: Beat) -> Tensor:
        """The last latents of the segment before [1, z, n, h, w], changed as the colours of their frames are."""
        carried = made[:, :, made.shape[2] - self.segment.carried :]
        if torch.equal(tail, told):
            return carried
        with self.stage("encode"):
            encoded = [encode_frames(self.vae, _chunks(frames, beat)) for frames in (told, tail)]
        return carried + (encoded[0] - encoded[1])[:, :, 1:].to(carried)


def look_metadata(look: Look) -> dict[str, str]:
    """How the colours that a video is held to stand beside its tensors."""
    return {LOOK: _json(look)}


def _json(colours: Look | Grade) -> str:
    return json.dumps(colours.to_json())


def first_look(plan: RenderPlan, known: Known) -> dict[str, str]:
    """The same of the first segment: of the frame that the new ones go on from, if there is one."""
    if plan.chaining is None or not plan.chaining.colour or not len(known.prefix):
        return {}
    look = Look.of(visible(known.prefix[-1:] / 2 + 0.5, plan))
    return look_metadata(look) | {END: _json(look), KNOWN: str(len(known.prefix))}


def join(plan: RenderPlan, made: Sequence[Path], out: Path) -> None:
    """The latents of all segments as one stream in `out`, which `Renderer.decode` takes. Raises RenderError."""
    latents, grades, metadata, begins = [], [], {}, read_metadata(made[0]).get(END)
    for part, path in zip(plan.parts, made, strict=True):
        metadata = metadata_for(part, path)
        segment = part.segments[0]
        new = segment.new_latents if segment.number else range(segment.latent_frames)
        latents.append(load_tensors(path, CPU)["latents"][:, :, new.start : new.stop])
        grades.append(json.loads(metadata.get(GRADE, "null")))
    about = {**metadata, "plan": plan.key, GRADES: json.dumps(grades[1:]), BEGINS: begins or "null"}
    save_tensors(out, {"latents": torch.cat(latents, dim=2)}, about)


def slides(plan: RenderPlan, metadata: dict[str, str]) -> list[Slide]:
    """How the colours of a joined video change: over each segment, to what the next one was told."""
    if len(plan.segments) < 2 or plan.chaining is None or not plan.chaining.colour:
        return []
    grades = [Grade.from_json(grade) for grade in json.loads(metadata[GRADES])]
    first, *rest = [
        Slide(s.start, s.stop, g, seam=True) for s, g in zip(plan.segments, [*grades, Grade()], strict=True)
    ]
    begins = json.loads(metadata.get(BEGINS, "null"))
    if begins is None:
        return [replace(first, seam=False), *rest]
    # a picture is the first of the frames, and stays as it is
    return [replace(first, start=max(1, first.start), before=Look.from_json(begins)), *rest]


def read_grade(path: Path) -> dict[str, Any]:
    """What the conditions or latents of a segment say of its colours, as `Grade.to_json` does."""
    return json.loads(read_metadata(path)[GRADE])


def metadata_for(plan: RenderPlan, path: Path) -> dict[str, str]:
    """The file's metadata. Raises RenderError when it was made for another plan."""
    metadata = read_metadata(path)
    if metadata.get("plan") != plan.key:
        raise RenderError(f"{path.name} was made for another plan")
    return metadata


def _chaining(plan: RenderPlan) -> Chaining:
    if plan.chaining is None or len(plan.segments) != 1 or not plan.segments[0].number:
        raise RenderError("the plan is not that of a segment that goes on from another one")
    return plan.chaining


def _chunks(frames: Tensor, beat: Beat) -> Iterator[Tensor]:
    """[n, 3, H, W] with n = 4m+1 as the autoencoder takes them: [1, 3, 1, H, W], then four at a time."""
    pixels = frames.transpose(0, 1)[None]
    for chunk in (pixels[:, :, :1], *pixels[:, :, 1:].split(TEMPORAL_STRIDE, dim=2)):
        beat()
        yield chunk
