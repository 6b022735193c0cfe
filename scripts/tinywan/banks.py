"""Clips that the denoiser learns from: filmed, captioned and encoded once, into files of one shape.

A bank is a function of its name, so a stopped run goes on as if it had not stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from tinywan.autoencoder import FULL, any_scene
from tinywan.captions import Commands, Content
from tinywan.moves import MOVES, Motion, camera_motion, canvas_size, film, sprite_motion
from tinywan.photos import Photo
from tinywan.recipe import Pool, Recipe, Stretch
from tinywan.scenes import random_sprite
from wan_pipelines.text import encode_text
from wan_pipelines.vae import encode_frames

#: pixel frames of the prefixes that are trained
PREFIXES = (5, 9, 13, 17)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the denoiser learns on top of: finished and frozen."""

    vae: AutoencoderKLWan
    tokenizer: PreTrainedTokenizerBase
    encoder: UMT5EncoderModel
    commands: Commands

    @property
    def device(self) -> torch.device:
        """Where everything is trained."""
        return self.vae.device


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded clips of one shape, half precision."""

    #: [N, z, T, h, w]
    latents: Tensor
    #: mask and condition latents [N, 4 + z, T, h, w]
    condition: Tensor
    #: [N, captions, text_len, D], or [N, text_len, D] once one is chosen
    text: Tensor
    #: camera in pixels per frame, and log scale per frame [N, 3]
    motion: Tensor

    def drawn(self, batch: int, zooms: int, rng: Random) -> Examples:
        """Some of the clips with one of their captions each, float32; those that zoom are `zooms` times as likely."""
        zooming = self.motion[:, 2].nonzero().flatten().tolist()
        rows = torch.tensor(rng.sample([*range(len(self.latents)), *zooming * (zooms - 1)], batch))
        wording = torch.tensor([rng.randrange(self.text.shape[1]) for _ in rows])
        chosen = self.latents[rows], self.condition[rows], self.text[rows, wording], self.motion[rows]
        return Examples(*(part.float() for part in chosen))


@dataclass(frozen=True, slots=True)
class Watched:
    """Encoded clips of one shape that are only looked at, half precision: all of their frames are known."""

    #: [N, z, T, h, w]
    latents: Tensor
    #: camera in pixels per frame, and log scale per frame [N, 3]
    motion: Tensor

    def drawn(self, batch: int, rng: Random) -> tuple[Tensor, Tensor]:
        """Some of them, float32."""
        rows = torch.tensor(rng.sample(range(len(self.latents)), batch))
        return self.latents[rows].float(), self.motion[rows].float()


@dataclass(frozen=True, slots=True)
class Archive:
    """The banks of a recipe in a folder; what is not there yet is made when it is asked for, and kept in memory."""

    recipe: Recipe
    photos: list[Photo]
    parts: Parts
    folder: Path
    _pools: dict[int, list[Examples]] = field(default_factory=dict)
    _watched: dict[int, Watched] = field(default_factory=dict)

    def pools(self, number: int) -> list[Examples]:
        """The pools of a stretch."""
        if number not in self._pools:
            stretch = self.recipe.denoiser.stretches[number]
            self._pools[number] = [self._pool(stretch, f"{number}-{i}", pool) for i, pool in enumerate(stretch.pools)]
        return self._pools[number]

    def watched(self, number: int) -> Watched:
        """The clips that a stretch only looks at."""
        if number not in self._watched:
            pool = self.recipe.denoiser.stretches[number].watched
            assert pool is not None

            def make(rng: Random) -> dict[str, Tensor]:
                return asdict(make_watched(self.recipe, self.photos, self.parts, pool, rng))

            self._watched[number] = Watched(**_fill(self.recipe, pool, self.folder / f"{number}-watched", make))
        return self._watched[number]

    def _pool(self, stretch: Stretch, name: str, pool: Pool) -> Examples:
        def make(rng: Random) -> dict[str, Tensor]:
            return asdict(make_examples(self.recipe, self.photos, self.parts, (stretch, pool), rng))

        return Examples(**_fill(self.recipe, pool, self.folder / name, make))


def _fill(recipe: Recipe, pool: Pool, stem: Path, make: Callable[[Random], dict[str, Tensor]]) -> dict[str, Tensor]:
    """All banks of a pool, one behind the other."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    banks = []
    for bank in range(pool.banks):
        path = stem.with_name(f"{stem.name}-{bank}.safetensors")
        if not path.is_file():
            print(f"filming {path.name}: {pool.clips} clips, {pool.frames}x{pool.width}x{pool.height}", flush=True)
            save_file(make(recipe.rng("bank", path.stem)), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        banks.append(load_file(path))
    return {name: torch.cat([bank[name] for bank in banks]) for name in banks[0]}


@torch.inference_mode()
def make_examples(
    recipe: Recipe, photos: list[Photo], parts: Parts, where: tuple[Stretch, Pool], rng: Random
) -> Examples:
    """Film, caption, condition and encode the clips of a bank."""
    stretch, pool = where
    latents, conditions, texts, motions = [], [], [], []
    every = torch.ones(pool.frames, dtype=torch.bool)
    for _ in range(0, pool.clips, pool.group):
        filmed = [film_content(recipe, photos, rng, pool, recipe.data.sprites) for _ in range(pool.group)]
        pixels = torch.stack([clip for _, _, clip in filmed])
        motions += [[motion.dx, motion.dy, motion.zoom] for _, motion, _ in filmed]
        # one kind of condition for the whole group, so that it can be encoded at once
        mode = _pick(stretch.modes, rng)
        known = known_frames(mode, pool.frames, rng)
        silence = stretch.empty.get(mode, recipe.denoiser.no_caption), stretch.unsaid * mode.startswith("prefix")
        condition = encode(parts.vae, pixels, known)
        latents.append(encode(parts.vae, pixels, every))
        conditions.append(torch.cat([known_mask(known, condition), condition], dim=1))
        texts += [_texts(recipe, parts, content, silence, rng) for content, _, _ in filmed]
    made = torch.cat(latents), torch.cat(conditions), torch.stack(texts), torch.tensor(motions)
    return Examples(*(part.half().cpu() for part in made))


@torch.inference_mode()
def make_watched(recipe: Recipe, photos: list[Photo], parts: Parts, pool: Pool, rng: Random) -> Watched:
    """Film and encode clips that need no words: the camera moves, sprites do not."""
    every, latents, motions = torch.ones(pool.frames, dtype=torch.bool), [], []
    for _ in range(0, pool.clips, pool.group):
        filmed = [film_content(recipe, photos, rng, pool, sprites=0.0) for _ in range(pool.group)]
        latents.append(encode(parts.vae, torch.stack([clip for _, _, clip in filmed]), every).half().cpu())
        motions += [[motion.dx, motion.dy, motion.zoom] for _, motion, _ in filmed]
    return Watched(torch.cat(latents), torch.tensor(motions))


def film_content(
    recipe: Recipe, photos: list[Photo], rng: Random, pool: Pool, sprites: float
) -> tuple[Content, Motion, Tensor]:
    """What a clip shows, any of the commands or a sprite that moves, and the clip [3, T, H, W]."""
    frames, size = pool.frames, (pool.width, pool.height)
    commands = (*MOVES, None)
    speed = rng.choice(("slow", "normal", "normal", "fast"))
    jitter = 1 + rng.uniform(-1, 1) * recipe.data.speed_jitter
    pan, zoom = recipe.data.pan[speed] * jitter, recipe.data.zoom[speed] * jitter
    sprite = random_sprite(rng, size) if rng.random() < sprites else None
    if sprite:
        move = rng.choice(("left", "right", "up", "down"))
        motion = sprite_motion(move, pan)
    else:
        move = rng.choice(commands)
        motion = camera_motion(move or "zoom_in", pan, zoom)
    scene = any_scene(recipe, photos, rng, canvas_size(motion, frames, FULL))
    named = (sprite.colour, sprite.shape) if sprite else None
    pixels = film(scene, motion, frames, size, rng, sprite)
    return Content(move, speed, scene.pattern, scene.colours, named), motion, pixels


def known_frames(mode: str, frames: int, rng: Random) -> Tensor:
    """Which pixel frames the condition shows [T]."""
    known = torch.zeros(frames, dtype=torch.bool)
    if mode.startswith("prefix"):
        known[: rng.choice([n for n in PREFIXES if n < frames - 4])] = True
    elif mode != "text":
        known[0] = True
    if mode.endswith("last"):
        known[-1] = True
    return known


def known_mask(known: Tensor, latents: Tensor) -> Tensor:
    """[N, 4, T, h, w]: row k of latent frame t is 1 when pixel frame 4t+k-3 is known; frame 0 fills four rows."""
    rows = torch.cat([known[:1].repeat(3), known]).view(-1, 4).T  # [4, T]
    return rows[None, :, :, None, None].to(latents).expand(len(latents), 4, *latents.shape[2:])


def encode(vae: AutoencoderKLWan, pixels: Tensor, known: Tensor) -> Tensor:
    """Latents [N, z, T, h, w] of clips [N, 3, T, H, W] whose unknown frames are mid-grey."""
    pixels = pixels.to(vae.device)
    grey = pixels.new_zeros(len(pixels), 3, 4, *pixels.shape[3:])
    visible = pixels * known[:, None, None].to(pixels)
    chunks = [visible[:, :, :1]]
    for start in range(1, pixels.shape[2], 4):
        chunks.append(visible[:, :, start : start + 4] if known[start : start + 4].any() else grey)
    with torch.autocast(pixels.device.type, torch.bfloat16):
        return encode_frames(vae, chunks)


def _texts(recipe: Recipe, parts: Parts, content: Content, silence: tuple[float, float], rng: Random) -> Tensor:
    """Text states [captions, text_len, D] of some ways to ask for the same clip."""
    captions = [_caption(parts.commands, content, *silence, rng) for _ in range(recipe.denoiser.captions)]
    length = recipe.text.length
    return torch.cat([encode_text(parts.tokenizer, parts.encoder, text, length).states for text in captions])


def _caption(commands: Commands, content: Content, empty: float, unsaid: float, rng: Random) -> str:
    """What is asked for; now and then nothing, for guidance, or nothing about a motion that a prefix shows."""
    if rng.random() < empty:
        return ""
    if unsaid and rng.random() < unsaid:
        content = Content(None, pattern=content.pattern, colours=content.colours)
    return commands.caption(content, rng)


def _pick(weights: dict[str, float], rng: Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
