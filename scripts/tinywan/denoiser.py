"""Third stage: a small `WanTransformer3DModel` that turns noise into latents under every kind of condition.

Every step draws some clips of the banks with new noise, as a function of its number.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tinywan.banks import Archive, Examples, Parts
from tinywan.motion import FLOW, Learner, motion_targets
from tinywan.photos import Photo
from tinywan.recipe import Denoiser, Recipe
from tinywan.training import Schedule, Trainer
from wan_pipelines.text import encode_text

#: noise level at which clips are only looked at: what is known counts, not the noise
WATCHED_SIGMA = 0.97


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
    archive = Archive(recipe, photos, parts, state.parent / "banks")
    silence = encode_text(parts.tokenizer, parts.encoder, "", recipe.text.length).states.detach()

    def loss_of(step: int) -> dict[str, Tensor]:
        number, rng = shape.part(step), recipe.rng("denoiser", step)
        stretch = shape.stretches[number]
        if stretch.renewed and step == shape.begin(number):
            torch.manual_seed(rng.getrandbits(62))
            model.renew(stretch.renewed)
            trainer.average.load_state_dict(model.state_dict())
        if stretch.watching and rng.random() < stretch.watching:
            return {"watched": _look(model, archive, number, silence, rng)}
        velocity, motion = _losses(model, _some_clips(archive, number, rng), shape.shift, rng)
        return {"velocity": velocity, "motion": stretch.motion * motion}

    # banks stay on disk, so none is made with an autoencoder that is not finished
    done = deadline > 0 and trainer.run(loss_of, deadline)
    average = trainer.average
    assert isinstance(average, Learner)
    return average.denoiser, done


def _some_clips(archive: Archive, number: int, rng: Random) -> Examples:
    """Clips for a step of stretch `number`: out of its own or the last pools, or those before them."""
    stretches = archive.recipe.denoiser.stretches
    sources, again = [n for n in range(number + 1) if stretches[n].pools], stretches[number].again
    source = sources[-2] if again and rng.random() < again else sources[-1]
    pools = stretches[source].pools
    pick = rng.choices(range(len(pools)), [pool.share for pool in pools])[0]
    return archive.pools(source)[pick].drawn(pools[pick].batch, stretches[number].zooms, rng)


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


def _look(model: Learner, archive: Archive, number: int, silence: Tensor, rng: Random) -> Tensor:
    """Mean squared error of what is read off clips whose frames are all known, without a prompt. The flow counts most.

    The clips are those of stretch `number`, or the last ones before.
    """
    pools = [one.watched for one in archive.recipe.denoiser.stretches[: number + 1]]
    source, batch = max((n, pool.batch) for n, pool in enumerate(pools) if pool)
    device = next(model.parameters()).device
    data, motion = (part.to(device) for part in archive.watched(source).drawn(batch, rng))
    text = silence.to(device).expand(len(data), -1, -1)
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    noise = torch.randn(data.shape, generator=generator).to(device)
    hidden = torch.cat([noise, torch.ones_like(data[:, :4]), data], dim=1)
    with torch.autocast(device.type, torch.bfloat16), PlainAttention():
        read = model.look(hidden, torch.full((len(data),), 1000 * WATCHED_SIGMA, device=device), text)
    error = (read.float() - motion_targets(motion, data.shape[2:])).square()
    return error.mean() + error[..., FLOW].mean()


def _sigmas(batch: int, shift: float, rng: Random) -> Tensor:
    """Noise levels [B], half uniform and half logit-normal, moved up by the shift."""
    uniform = torch.tensor([rng.random() for _ in range(batch)])
    normal = torch.sigmoid(torch.tensor([rng.gauss(0, 1) for _ in range(batch)]))
    level = torch.where(torch.tensor([rng.random() < 0.5 for _ in range(batch)]), uniform, normal)
    return shift * level / (1 + (shift - 1) * level)
