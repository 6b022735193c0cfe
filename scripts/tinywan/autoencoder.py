"""First stage: a small `AutoencoderKLWan` in the layout of Wan 2.2, with stride 8 as in I2V-A14B."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from tinywan.moves import Motion, canvas_size, film
from tinywan.photos import Photo
from tinywan.recipe import Recipe, Vae
from tinywan.scenes import Scene, drawn_scene, photo_scene, random_sprite
from tinywan.training import Schedule, Trainer

#: window of the scene that a frame of the finished model shows, width and height
FULL = (160, 96)


def build_vae(shape: Vae) -> AutoencoderKLWan:
    """The autoencoder with random weights."""
    return AutoencoderKLWan(
        base_dim=shape.base_dim,
        z_dim=shape.z_dim,
        dim_mult=list(shape.dim_mult),
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * shape.z_dim,
        latents_std=[1.0] * shape.z_dim,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=8,
    )


def train_vae(
    recipe: Recipe, photos: list[Photo], state: Path, deadline: float, device: torch.device
) -> tuple[AutoencoderKLWan, bool]:
    """The running average of the weights, and whether the stage is done."""
    torch.manual_seed(recipe.seed)
    vae = recipe.vae
    schedule = Schedule((vae.steps,), vae.warmup, vae.learning_rate, vae.final_learning_rate)
    model = cast(torch.nn.Module, build_vae(vae))  # the types of diffusers' own `to` are wrong
    trainer = Trainer(model.to(device), schedule, vae.ema, state)

    def loss_of(step: int) -> dict[str, Tensor]:
        phase, rng = vae.phase(step), recipe.rng("vae", step)
        size = (phase.size, phase.size)
        clips = torch.stack([any_clip(recipe, photos, rng, phase.frames, size) for _ in range(phase.batch)])
        return _losses(trainer.model, clips.to(device), vae.kl, rng)

    done = trainer.run(loss_of, deadline)
    average = trainer.average
    assert isinstance(average, AutoencoderKLWan)
    return average, done


def any_clip(recipe: Recipe, photos: list[Photo], rng: Random, frames: int, size: tuple[int, int]) -> Tensor:
    """A clip [3, T, H, W] with any camera motion, faster and more mixed than the commands know."""
    limit = 3.0 * rng.random() ** 2
    motion = Motion(
        dx=rng.uniform(-limit, limit),
        dy=rng.uniform(-limit, limit),
        zoom=rng.uniform(-0.012, 0.012) if rng.random() < 0.5 else 0.0,
        sprite_dx=rng.uniform(-2, 2),
        sprite_dy=rng.uniform(-2, 2),
    )
    sprite = random_sprite(rng, size) if rng.random() < recipe.data.sprites else None
    scene = any_scene(recipe, photos, rng, canvas_size(motion, frames, FULL))
    return film(scene, motion, frames, size, rng, sprite)


def any_scene(recipe: Recipe, photos: list[Photo], rng: Random, size: tuple[int, int]) -> Scene:
    """A photograph or a drawn canvas that covers `size`."""
    if rng.random() < recipe.data.drawn:
        return drawn_scene(rng, size)
    return photo_scene(rng.choice(photos), rng, size)


def _losses(vae: torch.nn.Module, clips: Tensor, kl: float, rng: Random) -> dict[str, Tensor]:
    """Absolute error of the reconstruction, and the distance of the latents from a standard normal."""
    assert isinstance(vae, AutoencoderKLWan)
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    with torch.autocast(clips.device.type, torch.bfloat16):
        moments = posterior(vae, clips)
        decoded = decode(vae, moments.sample(generator=generator))
    error = decoded.float() - clips
    mean, logvar = moments.mean.float(), moments.logvar.float()
    divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return {"l1": error.abs().mean(), "l2": 2 * (error**2).mean(), "kl": kl * divergence}


def posterior(vae: AutoencoderKLWan, clips: Tensor) -> DiagonalGaussianDistribution:
    """Distribution of the latents of clips [N, 3, T, H, W] in [-1, 1]."""
    return vae.encode(clips, return_dict=False)[0]


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Clips of raw latents [N, z, T, h, w]."""
    return vae.decode(latents, return_dict=False)[0]


@torch.inference_mode()
def with_statistics(vae: AutoencoderKLWan, recipe: Recipe, photos: list[Photo]) -> AutoencoderKLWan:
    """The same autoencoder whose config holds mean and standard deviation of its latents per channel."""
    rng = recipe.rng("statistics")
    clips = torch.stack([any_clip(recipe, photos, rng, 17, (96, 64)) for _ in range(32)])
    latents = posterior(vae, clips.to(vae.device)).mode()  # [N, z, T, h, w]
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae


@torch.inference_mode()
def reconstruction_psnr(vae: AutoencoderKLWan, images: Tensor) -> Tensor:
    """PSNR in dB of each of [N, 3, H, W] in [-1, 1] after encode and decode."""
    pixels = images[:, :, None].to(vae.device)
    decoded = decode(vae, posterior(vae, pixels).mode()).clamp(-1, 1)
    return -10 * torch.log10(((decoded - pixels) / 2).pow(2).mean(dim=(1, 2, 3, 4)))
