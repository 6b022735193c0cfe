"""Third stage: a small `WanTransformer3DModel` that turns noise into latents under every kind of condition.

Clips are filmed and encoded in banks of one shape; each clip is used a few times with other noise before the next
bank is made. A bank is a function of its number, so a stopped run goes on as if it had not stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from tinywan.autoencoder import FULL, any_scene
from tinywan.captions import Commands, Content
from tinywan.moves import camera_motion, canvas_size, film, sprite_motion
from tinywan.photos import Photo
from tinywan.recipe import Bank, Denoiser, Recipe, Round
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


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded clips of one shape."""

    #: [N, z, T, h, w]
    latents: Tensor
    #: mask and condition latents [N, 4 + z, T, h, w]
    condition: Tensor
    #: [N, text_len, D]
    text: Tensor


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
    model = build_denoiser(shape, recipe.vae.z_dim, recipe.text.width)
    schedule = Schedule(shape.steps, shape.warmup, shape.learning_rate, shape.final_learning_rate, shape.hold)
    trainer = Trainer(model, schedule, shape.ema, state)
    current: tuple[int, Examples] | None = None

    def loss_of(step: int) -> dict[str, Tensor]:
        nonlocal current
        number, stage, bank = shape.bank(step)
        if current is None or current[0] != number:
            current = number, make_examples(recipe, photos, parts, (stage, bank), recipe.rng("bank", number))
        return {"velocity": _velocity_loss(trainer.model, current[1], bank.batch, recipe, recipe.rng("noise", step))}

    done = trainer.run(loss_of, deadline)
    average = trainer.average
    assert isinstance(average, WanTransformer3DModel)
    return average, done


@torch.inference_mode()
def make_examples(
    recipe: Recipe, photos: list[Photo], parts: Parts, where: tuple[Round, Bank], rng: Random
) -> Examples:
    """Film, caption, condition and encode the clips of a bank."""
    stage, bank = where
    latents, conditions, texts = [], [], []
    every = torch.ones(bank.frames, dtype=torch.bool)
    for _ in range(0, bank.clips, bank.group):
        filmed = [film_content(recipe, photos, rng, bank.frames, (bank.width, bank.height)) for _ in range(bank.group)]
        pixels = torch.stack([clip for _, clip in filmed])
        # one kind of condition for the whole group, so that it can be encoded at once
        mode = _pick(stage.modes, rng)
        known = known_frames(mode, bank.frames, rng)
        condition = encode(parts.vae, pixels, known)
        latents.append(encode(parts.vae, pixels, every))
        conditions.append(torch.cat([known_mask(known, condition), condition], dim=1))
        captions = [_caption(recipe, parts.commands, content, mode, rng) for content, _ in filmed]
        texts += [encode_text(parts.tokenizer, parts.encoder, text, recipe.text.length).states for text in captions]
    return Examples(torch.cat(latents), torch.cat(conditions), torch.cat(texts))


def film_content(
    recipe: Recipe, photos: list[Photo], rng: Random, frames: int, size: tuple[int, int]
) -> tuple[Content, Tensor]:
    """A clip [3, T, H, W] and what it shows: any of the commands, or a sprite that moves."""
    commands = ("pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "static", None)
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
    return Content(move, speed, scene.pattern, scene.colours, named), pixels


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
    grey = pixels.new_zeros(len(pixels), 3, 4, *pixels.shape[3:])
    visible = pixels * known[:, None, None]
    chunks = [visible[:, :, :1]]
    for start in range(1, pixels.shape[2], 4):
        chunks.append(visible[:, :, start : start + 4] if known[start : start + 4].any() else grey)
    with torch.autocast("cpu", torch.bfloat16):
        return encode_frames(vae, chunks)


def _caption(recipe: Recipe, commands: Commands, content: Content, mode: str, rng: Random) -> str:
    """What is asked for; now and then nothing, for guidance, and less where the prefix shows the motion."""
    if rng.random() < recipe.denoiser.no_caption:
        return ""
    if mode.startswith("prefix") and rng.random() < 0.3:
        content = Content(None, pattern=content.pattern, colours=content.colours)
    return commands.caption(content, rng)


def _velocity_loss(model: torch.nn.Module, examples: Examples, batch: int, recipe: Recipe, rng: Random) -> Tensor:
    """Mean squared error of the predicted noise - data at random noise levels."""
    rows = torch.tensor(rng.sample(range(len(examples.latents)), batch))
    data = examples.latents[rows]
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    noise = torch.randn(data.shape, generator=generator)
    sigma = _sigmas(batch, recipe.denoiser.shift, rng).view(-1, 1, 1, 1, 1)
    hidden = torch.cat([sigma * noise + (1 - sigma) * data, examples.condition[rows]], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(hidden, 1000 * sigma.flatten(), examples.text[rows], return_dict=False)[0]
    return functional.mse_loss(velocity.float(), noise - data)


def _sigmas(batch: int, shift: float, rng: Random) -> Tensor:
    """Noise levels [B], half uniform and half logit-normal, moved up by the shift."""
    uniform = torch.tensor([rng.random() for _ in range(batch)])
    normal = torch.sigmoid(torch.tensor([rng.gauss(0, 1) for _ in range(batch)]))
    level = torch.where(torch.tensor([rng.random() < 0.5 for _ in range(batch)]), uniform, normal)
    return shift * level / (1 + (shift - 1) * level)


def _pick(weights: dict[str, float], rng: Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
