"""Third stage: a small `WanTransformer3DModel` that turns noise into latents under every kind of condition.

Clips are filmed and encoded once, into banks of one shape on disk; every step draws some of them with new noise.
A bank is a function of its name and a batch of its step, so a stopped run goes on as if it had not stopped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from tinywan.autoencoder import FULL, any_scene
from tinywan.captions import Commands, Content
from tinywan.motion import Learner, motion_targets
from tinywan.moves import MOVES, Motion, camera_motion, canvas_size, film, sprite_motion
from tinywan.photos import Photo
from tinywan.recipe import Denoiser, Pool, Recipe, Stretch
from tinywan.scenes import random_sprite
from tinywan.training import Schedule, Trainer
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


class PlainAttention(TorchFunctionMode):
    """Attention as two matrix products. On a CPU its backward pass at 120 tokens takes a fifth of the fused one's.

    On other devices the fused one stays.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args or (kwargs[name] for name in ("query", "key", "value"))
        if query.device.type != "cpu":
            return func(query, key, value)
        weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
        return weights @ value


def build_denoiser(shape: Denoiser, z_dim: int, text_width: int) -> WanTransformer3DModel:
    """The transformer with random weights; input channels are noise, mask and condition latents."""
    return WanTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        in_channels=2 * z_dim + 4,
        out_channels=z_dim,
        text_dim=text_width,
        freq_dim=128,
        ffn_dim=shape.ffn,
        num_layers=shape.layers,
    )


def train_denoiser(
    recipe: Recipe, photos: list[Photo], parts: Parts, state: Path, deadline: float
) -> tuple[WanTransformer3DModel, bool]:
    """The running average of the weights, and whether the stage is done."""
    torch.manual_seed(recipe.seed)
    shape = recipe.denoiser
    model = Learner(build_denoiser(shape, recipe.vae.z_dim, recipe.text.width)).to(parts.device)
    schedule = Schedule(shape.cycles, shape.warmup, shape.learning_rate, shape.final_learning_rate, shape.hold)
    trainer = Trainer(model, schedule, shape.ema, state)
    filmed: dict[int, list[Examples]] = {}

    def loss_of(step: int) -> dict[str, Tensor]:
        number, rng = shape.stretch(step), recipe.rng("denoiser", step)
        stretch, source = shape.stretches[number], _source(shape, number, rng)
        if source not in filmed:
            filmed[source] = fill_pools(recipe, photos, parts, source, state.parent / "banks")
        pools = shape.stretches[source].pools
        pick = rng.choices(range(len(pools)), [pool.share for pool in pools])[0]
        clips = filmed[source][pick].drawn(pools[pick].batch, stretch.zooms, rng)
        velocity, motion = _losses(model, clips, shape.shift, rng)
        return {"velocity": velocity, "motion": stretch.motion * motion}

    # banks stay on disk, so none is made with an autoencoder that is not finished
    done = deadline > 0 and trainer.run(loss_of, deadline)
    average = trainer.average
    assert isinstance(average, Learner)
    return average.denoiser, done


def _source(shape: Denoiser, number: int, rng: Random) -> int:
    """The stretch whose pools a step of stretch `number` draws from: its own or the last ones, or those before them."""
    sources = [n for n in range(number + 1) if shape.stretches[n].pools]
    again = shape.stretches[number].again
    return sources[-2] if again and rng.random() < again else sources[-1]


def fill_pools(recipe: Recipe, photos: list[Photo], parts: Parts, number: int, folder: Path) -> list[Examples]:
    """The pools of a stretch; banks that are not in the folder yet are made."""
    stretch, pools = recipe.denoiser.stretches[number], []
    folder.mkdir(parents=True, exist_ok=True)
    for index, pool in enumerate(stretch.pools):
        banks = []
        for bank in range(pool.banks):
            path = folder / f"{number}-{index}-{bank}.safetensors"
            if not path.is_file():
                print(f"filming {path.name}: {pool.clips} clips, {pool.frames}x{pool.width}x{pool.height}", flush=True)
                made = make_examples(recipe, photos, parts, (stretch, pool), recipe.rng("bank", path.stem))
                save_file(asdict(made), path.with_suffix(".part"))
                path.with_suffix(".part").replace(path)
            banks.append(load_file(path))
        pools.append(Examples(**{name: torch.cat([bank[name] for bank in banks]) for name in banks[0]}))
    return pools


@torch.inference_mode()
def make_examples(
    recipe: Recipe, photos: list[Photo], parts: Parts, where: tuple[Stretch, Pool], rng: Random
) -> Examples:
    """Film, caption, condition and encode the clips of a bank."""
    stretch, pool = where
    latents, conditions, texts, motions = [], [], [], []
    every = torch.ones(pool.frames, dtype=torch.bool)
    for _ in range(0, pool.clips, pool.group):
        filmed = [film_content(recipe, photos, rng, where) for _ in range(pool.group)]
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


def film_content(
    recipe: Recipe, photos: list[Photo], rng: Random, where: tuple[Stretch, Pool]
) -> tuple[Content, Motion, Tensor]:
    """What a clip shows, any of the commands or a sprite that moves, and the clip [3, T, H, W]."""
    _, pool = where
    frames, size = pool.frames, (pool.width, pool.height)
    commands = (*MOVES, None)
    speed = rng.choice(("slow", "normal", "normal", "fast"))
    jitter = 1 + rng.uniform(-1, 1) * recipe.data.speed_jitter
    pan, zoom = recipe.data.pan[speed] * jitter, recipe.data.zoom[speed] * jitter
    sprite = random_sprite(rng, size) if rng.random() < recipe.data.sprites else None
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


def _losses(model: Learner, clips: Examples, shift: float, rng: Random) -> tuple[Tensor, Tensor]:
    """Mean squared errors of the predicted noise - data at random noise levels, and of the motion read on the way."""
    device = next(model.parameters()).device
    parts = clips.latents, clips.condition, clips.text, clips.motion
    data, condition, text, motion = (part.to(device) for part in parts)
    # drawn on the CPU, so that a step means the same on every device
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    noise = torch.randn(data.shape, generator=generator).to(device)
    sigma = _sigmas(len(data), shift, rng).view(-1, 1, 1, 1, 1).to(device)
    hidden = torch.cat([sigma * noise + (1 - sigma) * data, condition], dim=1)
    with torch.autocast(device.type, torch.bfloat16), PlainAttention():
        velocity, read = model(hidden, 1000 * sigma.flatten(), text)
    wanted = motion_targets(motion, data.shape[2:])
    return functional.mse_loss(velocity.float(), noise - data), functional.mse_loss(read.float(), wanted)


def _sigmas(batch: int, shift: float, rng: Random) -> Tensor:
    """Noise levels [B], half uniform and half logit-normal, moved up by the shift."""
    uniform = torch.tensor([rng.random() for _ in range(batch)])
    normal = torch.sigmoid(torch.tensor([rng.gauss(0, 1) for _ in range(batch)]))
    level = torch.where(torch.tensor([rng.random() < 0.5 for _ in range(batch)]), uniform, normal)
    return shift * level / (1 + (shift - 1) * level)


def _pick(weights: dict[str, float], rng: Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
