"""Frames of a clip that were decoded for the clip behind it, kept for the video: what was decoded is not decoded again.

They are kept in 8 bits, as the file shows them: a clip of 5 s of 720P takes 236 MB beside the latents, until the video
is made. Nothing depends on them. Where they are gone, the clip is decoded, and its frames are rounded to the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wan_pipelines.tensorfile import matching_tensors, save_tensors

WHITE = 255


def in_bytes(frames: Tensor) -> Tensor:
    """Frames in [0, 1] to uint8."""
    return (frames * WHITE).round().byte()


def from_bytes(frames: Tensor) -> Tensor:
    """And back to float32."""
    return frames.float() / WHITE


@dataclass(frozen=True, slots=True)
class ShownFrames:
    """Files beside a file of latents, one for each clip."""

    latents: Path

    def put(self, number: int, decoded_from: Sequence[Tensor], chunks: Sequence[Tensor]) -> None:
        """Keep all shown frames of a clip, uint8 [f, 3, H, W] each; `decoded_from` is all that the decoder saw."""
        save_tensors(self._path(number), {"frames": torch.cat(list(chunks))}, _origin(decoded_from))

    def get(self, number: int, decoded_from: Sequence[Tensor]) -> Tensor | None:
        """Those frames; None where there are none, or those of other latents."""
        found: Mapping[str, Tensor] = matching_tensors(self._path(number), _origin(decoded_from))
        return found.get("frames")

    def _path(self, number: int) -> Path:
        return self.latents.with_name(f"{self.latents.stem}-shown-{number}.safetensors")


def _origin(tensors: Sequence[Tensor]) -> dict[str, str]:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return {"decoded from": digest.hexdigest()}
