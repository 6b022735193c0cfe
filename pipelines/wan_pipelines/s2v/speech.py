"""Sound as an audio-driven model hears it: the states of every layer of wav2vec 2.0, for every frame of a clip.

Source: Wan-Video/Wan2.2 42bf4cf, wan/modules/s2v/audio_encoder.py (AudioEncoder) and wan/speech2video.py
(encode_audio), with the transformers 4.51 that it asks for. There the last of the states is the one after the encoder's
closing norm; later releases list the one before it, so it is taken from the model's output here. Sound is read and
encoded to the end of the last clip, never beyond, in one pass: 15 s are 750 states, and a state depends on all others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from av.error import FFmpegError
from torch import Tensor
from transformers import Wav2Vec2Model

from wan_pipelines.audio import SoundError, SoundReader
from wan_pipelines.errors import RenderError
from wan_pipelines.s2v.clips import HEARD_RATE, Chain
from wan_pipelines.tensorfile import load_tensors, save_tensors

#: samples per second that wav2vec 2.0 was trained on
RATE = 16_000
#: states per second that it gives
STATE_RATE = 50
#: keeps the variance of silence from zero (transformers, Wav2Vec2FeatureExtractor)
VARIANCE_FLOOR = 1e-7
#: sound shorter than this gives hardly a state
LEAST_SECONDS = 0.1
#: full scale is 1; up to here the variance is a number
LOUDEST = 1e9
#: changes when the same samples and weights give other features
FORM = "wav2vec2 30 Hz 1"
#: about ten sounds of 15 s through the large wav2vec 2.0
CACHE_BYTES = 512 << 20


class SpeechReader(SoundReader):
    """The first sound track of a file as speech recognisers take it."""

    def speech(self) -> Iterator[np.ndarray]:
        """All samples, float32 [n] at 16 kHz, channels mixed, in pieces as they are decoded."""
        return (piece[0] for piece in self._resampled("flt", "mono", RATE))


def read_speech(path: Path, seconds: float) -> np.ndarray:
    """The first `seconds` of a file's sound, float32 [n] at 16 kHz, mono; shorter where the file is.

    Raises SoundError, which names the field.
    """
    try:
        with SpeechReader(path) as reader:
            samples = _first(reader.speech(), math.ceil(seconds * RATE))
    except SoundError as error:
        raise SoundError(f"input.driving_audio: {error}") from None
    except FFmpegError as error:
        raise SoundError(f"input.driving_audio: the sound cannot be decoded ({error.strerror})") from None
    if len(samples) < LEAST_SECONDS * RATE:
        heard = f"{len(samples) / RATE:.3f}"
        raise SoundError(f"input.driving_audio: must hold at least {LEAST_SECONDS} s of sound (got {heard})")
    if not (np.abs(samples) < LOUDEST).all():
        raise SoundError("input.driving_audio: holds samples that are no numbers, or beyond any loudness")
    return samples


def normalised(samples: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 over the whole sound, bit for bit as Wav2Vec2Processor does it; float32 [n]."""
    return (samples - samples.mean()) / np.sqrt(samples.var() + VARIANCE_FLOOR)


@torch.no_grad()
def speech_states(model: Wav2Vec2Model, samples: np.ndarray) -> Tensor:
    """States of every layer, float32 [layers + 1, n, width] at 50 Hz on the model's device; the embedding is first."""
    values = torch.from_numpy(normalised(samples))[None].to(model.device, model.dtype)
    output = model(values, output_hidden_states=True)
    return torch.cat((*output.hidden_states[:-1], output.last_hidden_state)).float()


def at_heard_rate(states: Tensor) -> Tensor:
    """[layers + 1, n, width] at 50 Hz to 30 Hz, ends on ends. The length is cut the way floats cut it there."""
    length = int(states.shape[1] / STATE_RATE * HEARD_RATE)
    return F.interpolate(states.mT, size=length, mode="linear", align_corners=True).mT


def heard_by_frames(features: Tensor, heard: Sequence[int]) -> Tensor:
    """[layers + 1, n, width] at 30 Hz to [layers + 1, width, frames]; zeros beyond the sound."""
    index = torch.tensor(heard, device=features.device)
    chosen = features[:, index.clamp(max=features.shape[1] - 1)]
    return chosen.masked_fill((index >= features.shape[1])[None, :, None], 0.0).mT


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Features in a folder, by what they were made of; the ones not used for longest go first."""

    folder: Path
    most_bytes: int = CACHE_BYTES

    def get(self, key: str) -> Tensor | None:
        """None when there are none, or when their file is damaged."""
        path = self._path(key)
        try:
            features = load_tensors(path, torch.device("cpu")).get("features")
            os.utime(path)
        except (RenderError, FileNotFoundError):
            return None
        return features

    def put(self, key: str, features: Tensor) -> None:
        """Written whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._path(key), {"features": features}, {"form": FORM})
        self._shrink(self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _shrink(self, kept: Path) -> None:
        facts = {path: path.stat() for path in self.folder.iterdir()}
        size = sum(fact.st_size for fact in facts.values())
        for path in sorted(facts.keys() - {kept}, key=lambda path: facts[path].st_mtime_ns):
            if size > self.most_bytes:
                size -= facts[path].st_size
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class SpeechEncoder:
    """wav2vec 2.0 in evaluation mode, and where its features are kept."""

    model: Wav2Vec2Model
    fingerprint: str
    cache: FeatureCache | None

    @classmethod
    def of(cls, model: Wav2Vec2Model, cache: FeatureCache | None = None) -> Self:
        """Reads all weights once for the fingerprint, when there is a cache."""
        return cls(model.eval(), fingerprint(model) if cache else "", cache)

    def features(self, samples: np.ndarray) -> Tensor:
        """Features of mono sound at 16 kHz, float32 [layers + 1, n, width] at 30 Hz on the CPU."""
        key = hashlib.sha256(self.fingerprint.encode() + np.ascontiguousarray(samples).data).hexdigest()
        known = self.cache.get(key) if self.cache else None
        if known is not None:
            return known
        features = at_heard_rate(speech_states(self.model, samples)).cpu()
        if self.cache:
            self.cache.put(key, features)
        return features


def hear(encoder: SpeechEncoder, path: Path, chain: Chain) -> list[Tensor]:
    """What each clip of a chain hears of a file, float32 [layers + 1, width, sampled frames] on the CPU.

    Raises SoundError, which names the field.
    """
    features = encoder.features(read_speech(path, chain.heard_seconds))
    return [heard_by_frames(features, chain.heard(clip)) for clip in chain.clips]


def fingerprint(model: Wav2Vec2Model) -> str:
    """Changes when a weight, its dtype or the architecture does."""
    digest = hashlib.sha256(FORM.encode())
    digest.update(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first(pieces: Iterator[np.ndarray], count: int) -> np.ndarray:
    """At most `count` samples; decodes no further than that."""
    taken, left = [np.zeros(0, np.float32)], count
    for piece in pieces:
        taken.append(piece[:left])
        left -= len(taken[-1])
        if not left:
            break
    return np.concatenate(taken)
