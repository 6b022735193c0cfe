"""Pixels to latents and back through `AutoencoderKLWan`, chunk by chunk.

The autoencoder is causal in time: one latent frame stands for one pixel frame at the start and for four after
that, and all it remembers of the past is a list of features. That list is kept here rather than on the module,
so neither direction ever holds the whole video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanCausalConv3d,
    patchify,
    unpatchify,
)
from torch import Tensor, nn

from wan_pipelines.errors import RenderError

Cache = list[Tensor | None]

#: latent frames that the decoder sees before the first wanted one, in place of all, where it works at their rate. From
#: the last frame of that one on its answer is then off by 0.05 of one level of 255 at most (rocket-pan.mp4 at 160x96,
#: the embedded autoencoder; six: 0.16)
WARM_UP = 7


def encode_frames(vae: AutoencoderKLWan, chunks: Iterable[Tensor], *, skip_settled: bool = True) -> Tensor:
    """Normalised latents [1, z, T, h, w], float32, of a video in [-1, 1] (the mode, not a sample).

    `chunks` are [1, 3, 1, H, W] and then [1, 3, 4, H, W]. When the same tensor object comes again and again,
    every part of the encoder whose memory has come to rest answers without computing; the result is the same
    to the last bit. `skip_settled` switches that off.
    """
    parts = _encoder_parts(vae, skip_settled)
    moments = []
    for pixels in _patchified(vae, chunks):
        hidden = pixels
        for part in parts:
            hidden = part(hidden)
        moments.append(hidden)
    mode = vae.quant_conv(torch.cat(moments, dim=2)).chunk(2, dim=1)[0].float()
    mean, std = _statistics(vae)
    return (mode - mean.to(mode)) / std.to(mode)


def stream_decode(vae: AutoencoderKLWan, latents: Tensor) -> Iterator[Tensor]:
    """Frames of normalised latents [1, z, T, h, w], as [f, 3, H, W] in [0, 1]: one frame, then four at a time.

    Raises RenderError when a value is not finite.
    """
    cache: Cache = [None] * _memory_size(vae.decoder)
    for index, hidden in enumerate(_raw(vae, latents)):
        pixels = vae.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
        yield _frames(vae, pixels, f"{index} of {latents.shape[2]}")


def decode_end(vae: AutoencoderKLWan, latents: Tensor, wanted: int) -> Iterator[Tensor]:
    """What `stream_decode` gives for the last `wanted` latent frames, but for a rounding, without most of the others.

    Every part of the decoder begins some latent frames before the first wanted one, the later the more often it works
    for one of them: what is remembered counts its own frames. An empty chunk comes for each latent frame before.
    """
    first = latents.shape[2] - wanted
    begins, parts = max(0, first - WARM_UP), _decoder_parts(vae)
    height, width = (side * vae.config["scale_factor_spatial"] for side in latents.shape[3:])
    for index, hidden in enumerate(_raw(vae, latents[:, :, begins:]), start=begins):
        answer: Tensor | None = hidden
        for part in parts:
            if answer is not None:
                answer = part(answer) if index >= first - part.warm_up else None
        if answer is not None and index >= first:
            yield _frames(vae, answer, f"{index} of {latents.shape[2]}")
        else:
            yield latents.new_empty(0, 3, height, width)


def _raw(vae: AutoencoderKLWan, latents: Tensor) -> tuple[Tensor, ...]:
    """Latent frames as the decoder sees them, [1, z, 1, h, w] each."""
    mean, std = _statistics(vae)
    return vae.post_quant_conv(latents.to(vae.dtype) * std.to(latents) + mean.to(latents)).split(1, dim=2)


def _frames(vae: AutoencoderKLWan, decoded: Tensor, which: str) -> Tensor:
    """Frames [f, 3, H, W] in [0, 1] from the decoder's answer. Raises RenderError when a value is not finite."""
    pixels = unpatchify(decoded, vae.config["patch_size"] or 1)
    if not torch.isfinite(pixels).all():
        raise RenderError(f"decode: latent frame {which} gave pixels that are not finite")
    return (pixels[0].transpose(0, 1).float() / 2 + 0.5).clamp(0, 1)


@dataclass(slots=True)
class _Late:
    """A piece of the decoder that begins behind the start, with its own memory."""

    run: Callable[[Tensor, Cache, bool], Tensor]
    #: causal convolutions inside
    memory: int
    #: latent frames before the first wanted one that it sees
    warm_up: int
    cache: Cache = field(default_factory=list)

    def __call__(self, hidden: Tensor) -> Tensor:
        if self.cache:
            return self.run(hidden, self.cache, False)
        self.cache = [None] * self.memory
        return self.run(hidden[:, :, -1:], self.cache, True)  # the first latent frame stands for one frame


def _decoder_parts(vae: AutoencoderKLWan) -> list[_Late]:
    decoder = vae.decoder
    # frames of one latent frame that go into each block
    rates = accumulate(decoder.temperal_upsample, lambda rate, doubles: 2 * rate if doubles else rate, initial=1)
    sizes = [-(-WARM_UP // rate) for rate in rates]
    for index in reversed(range(len(sizes) - 1)):  # of two blocks at one rate the first begins first
        sizes[index] = max(sizes[index], sizes[index + 1] + 1)

    def entry(hidden: Tensor, cache: Cache, _: bool) -> Tensor:
        return decoder.mid_block(_causal_conv(decoder.conv_in, hidden, cache), feat_cache=cache, feat_idx=[1])

    def head(hidden: Tensor, cache: Cache, _: bool) -> Tensor:
        return _causal_conv(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(hidden)), cache)

    def up(block: nn.Module) -> Callable[[Tensor, Cache, bool], Tensor]:
        return lambda hidden, cache, first: block(hidden, feat_cache=cache, feat_idx=[0], first_chunk=first)

    blocks = [_Late(up(b), _memory_size(b), size) for b, size in zip(decoder.up_blocks, sizes, strict=True)]
    return [_Late(entry, 1 + _memory_size(decoder.mid_block), WARM_UP), *blocks, _Late(head, 1, sizes[-1])]


class _Part:
    """A piece of the encoder with its own memory.

    A piece is a function of its input and its memory. Once the same input has left the memory as it was, the
    answer cannot change, and neither can anything behind it that sees the same tensor again.
    """

    def __init__(self, run: Callable[[Tensor, Cache], Tensor], memory: int, skip_settled: bool) -> None:
        self._run = run
        self._skip_settled = skip_settled
        self._memory: Cache = [None] * memory
        self._input = self._answer = torch.empty(0)
        self._rests = False

    def __call__(self, hidden: Tensor) -> Tensor:
        repeats = self._skip_settled and hidden is self._input
        if repeats and self._rests:
            return self._answer
        before = list(self._memory)
        answer = self._run(hidden, self._memory)
        self._rests = repeats and _same(before, self._memory)
        if not (repeats and torch.equal(answer, self._answer)):
            self._answer = answer
        self._input = hidden
        return self._answer


def _encoder_parts(vae: AutoencoderKLWan, skip_settled: bool) -> list[_Part]:
    encoder = vae.encoder
    inner = (*encoder.down_blocks, encoder.mid_block)
    blocks = [_Part(_run_block(block), _memory_size(block), skip_settled) for block in inner]

    def head(hidden: Tensor, cache: Cache) -> Tensor:
        return _causal_conv(encoder.conv_out, encoder.nonlinearity(encoder.norm_out(hidden)), cache)

    def entry(pixels: Tensor, cache: Cache) -> Tensor:
        return _causal_conv(encoder.conv_in, pixels, cache)

    return [_Part(entry, 1, skip_settled), *blocks, _Part(head, 1, skip_settled)]


def _run_block(block: nn.Module) -> Callable[[Tensor, Cache], Tensor]:
    return lambda hidden, cache: block(hidden, feat_cache=cache, feat_idx=[0])


def _causal_conv(conv: nn.Module, hidden: Tensor, cache: Cache) -> Tensor:
    """A convolution that sees the last two frames of the past, as the modules inside the blocks do."""
    past = cache[0]
    recent = hidden[:, :, -2:]
    if recent.shape[2] < 2 and past is not None:
        recent = torch.cat([past[:, :, -1:], recent], dim=2)
    cache[0] = recent.clone()
    return conv(hidden, past)


def _memory_size(module: nn.Module) -> int:
    return sum(isinstance(m, WanCausalConv3d) for m in module.modules())


def _same(before: Cache, after: Cache) -> bool:
    pairs = zip(before, after, strict=True)
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _patchified(vae: AutoencoderKLWan, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Chunks as the encoder sees them; a repeated chunk stays one and the same tensor."""
    patch = vae.config["patch_size"] or 1
    seen = given = torch.empty(0)
    for chunk in chunks:
        if chunk is not seen:
            seen, given = chunk, patchify(chunk.to(vae.dtype), patch)
        yield given


def _statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents in training, [1, z, 1, 1, 1]."""
    mean, std = (torch.tensor(vae.config[name]) for name in ("latents_mean", "latents_std"))
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
