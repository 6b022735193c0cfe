"""Writes what the published S2V code answers to small random weights and inputs: the files of tests/golden/s2v.

    python scripts/s2v_golden.py PATH_OF_A_CHECKOUT_OF_WAN_2_2

Runs on a CPU in float32 within seconds and needs `einops`, which the published code imports. Weights and inputs come
from a seed, so that the file holds answers only; `tests/test_s2v_model.py` makes the same ones for our class.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "s2v"
#: single forwards, by case; and a second clip behind a first one, with the noise levels of the sampler
GOLDEN, CHAIN = FOLDER / "forward.safetensors", FOLDER / "chain.safetensors"
SEED = 20
#: latent frames, height and width: 3 x 2 of the coarsest patches
LATENT = (3, 24, 16)
#: 16 channels, 25 layers and 19 latent frames of motion are fixed in the published code
CHANNELS, AUDIO_LAYERS, MOTION_FRAMES, MOTION_LATENTS = 16, 25, 73, 19
HEADS, WIDTH, FEED_FORWARD, LAYERS = 4, 96, 160, 4
TEXT_DIM, TEXT_LEN, FREQ_DIM, AUDIO_DIM = 32, 24, 64, 12
INJECT_LAYERS = (0, 2, 3)
TIMESTEP = 875.0
STEPS, SHIFT, GUIDANCE = 4, 3.0, 4.5
#: settings of the published class
THEIRS: dict[str, Any] = {
    "cond_dim": CHANNELS,
    "audio_dim": AUDIO_DIM,
    "num_audio_token": 4,
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "audio_inject_layers": list(INJECT_LAYERS),
    "zero_timestep": True,
    "enable_motioner": False,
    "add_last_motion": True,
    "enable_framepack": True,
    "framepack_drop_mode": "padd",
    "text_len": TEXT_LEN,
    "in_dim": CHANNELS,
    "dim": WIDTH,
    "ffn_dim": FEED_FORWARD,
    "freq_dim": FREQ_DIM,
    "text_dim": TEXT_DIM,
    "out_dim": CHANNELS,
    "num_heads": HEADS,
    "num_layers": LAYERS,
}
#: the same settings of our class
OURS: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "text_dim": TEXT_DIM,
    "freq_dim": FREQ_DIM,
    "ffn_dim": FEED_FORWARD,
    "num_layers": LAYERS,
    "audio_dim": AUDIO_DIM,
    "audio_inject_layers": INJECT_LAYERS,
}
Inputs = dict[str, Tensor]


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values for the published names, of a size that lets every layer matter and the answer be about 1."""
    # a stream that numpy promises not to change
    stream = np.random.RandomState(SEED)
    return {name: _weight(stream, name, shapes[name]) for name in sorted(shapes)}


def _weight(stream: np.random.RandomState, name: str, shape: tuple[int, ...]) -> Tensor:
    values = torch.from_numpy(stream.standard_normal(shape)).float()
    if name.endswith("casual_audio_encoder.weights"):
        return 0.5 + 0.2 * values
    if "norm" in name:
        return 0.2 * values + (1 if name.endswith("weight") else 0)
    if name.endswith("bias"):
        return 0.1 * values
    if "modulation" in name or "cond_mask" in name or "padding" in name:
        return 0.5 * values
    return values / (values[0].numel() ** 0.5)


def random_inputs() -> dict[str, Inputs]:
    """Inputs by case: the first clip, a later one with motion and a pose, the unconditional pass of that one."""
    stream = np.random.RandomState(SEED + 1)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(stream.standard_normal(shape)).float()

    frames, height, width = LATENT
    first = {
        "latents": draw(1, CHANNELS, *LATENT),
        "text": draw(1, TEXT_LEN - 5, TEXT_DIM),
        "reference": draw(1, CHANNELS, 1, height, width),
        "audio": draw(1, AUDIO_LAYERS, AUDIO_DIM, 4 * frames),
    }
    later = {**first, "latents": draw(1, CHANNELS, *LATENT), "audio": draw(*first["audio"].shape)}
    later["motion"] = draw(1, CHANNELS, MOTION_LATENTS, height, width)
    later["pose"] = draw(1, CHANNELS, *LATENT)
    unconditional = {**later, "text": draw(1, 3, TEXT_DIM), "audio": torch.zeros_like(first["audio"])}
    del unconditional["pose"]
    return {"first": first, "later": later, "unconditional": unconditional}


def open_published(checkout: Path) -> Any:
    """The published model with the random weights. Its packages' own `__init__` would load far more than that."""
    for name in ("wan", "wan.modules", "wan.modules.s2v", "wan.distributed", "wan.utils"):
        package = ModuleType(name)
        package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = package
    for name in ("wan.modules.model", "wan.modules.s2v.model_s2v"):
        module: Any = importlib.import_module(name)
        module.flash_attention = plain_attention
    published: Any = sys.modules["wan.modules.s2v.model_s2v"]
    model = published.WanModel_S2V(**THEIRS).eval().requires_grad_(False)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(random_weights(shapes))
    return model


def plain_attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    """torch's attention over [B, L, heads, d]; nothing is masked in these inputs."""
    return scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def answer(model: Any, inputs: Inputs, timestep: float | Tensor = TIMESTEP) -> Tensor:
    """Velocity [1, z, T, h, w] of the published model."""
    has_motion = "motion" in inputs
    motion = inputs["motion"] if has_motion else torch.zeros(1, CHANNELS, MOTION_LATENTS, *LATENT[1:])
    with torch.no_grad():
        (velocity,) = model(
            [inputs["latents"][0]],
            t=torch.as_tensor(timestep)[None],
            context=[inputs["text"][0]],
            seq_len=None,
            ref_latents=[inputs["reference"][0]],
            motion_latents=[motion[0]],
            cond_states=[inputs.get("pose", torch.zeros(1, CHANNELS, *LATENT))[0]],
            audio_input=inputs["audio"],
            motion_frames=[MOTION_FRAMES, MOTION_LATENTS],
            drop_motion_frames=not has_motion,
        )
    return velocity[None]


def chained(model: Any) -> dict[str, Tensor]:
    """A first clip and one that goes on from its latents, each denoised by the published sampler with guidance.

    Between clips the published loop decodes and encodes again; here the latents go over as they are.
    """
    cases = random_inputs()
    text, empty = cases["first"]["text"], cases["unconditional"]["text"]
    still: Inputs = {"reference": cases["first"]["reference"]}
    solver: Any = importlib.import_module("wan.utils.fm_solvers_unipc")
    for clip in (cases["first"], cases["later"]):
        scheduler = solver.FlowUniPCMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        scheduler.set_timesteps(STEPS, device="cpu", shift=SHIFT)
        latents = clip["latents"]
        for timestep in scheduler.timesteps:
            heard = {**still, "latents": latents, "text": text, "audio": clip["audio"]}
            unheard = {**heard, "text": empty, "audio": torch.zeros_like(clip["audio"])}
            told, untold = (answer(model, inputs, timestep) for inputs in (heard, unheard))
            velocity = untold + GUIDANCE * (told - untold)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        still["motion"] = latents
    return {"second": still["motion"], "sigmas": scheduler.sigmas}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of Wan-Video/Wan2.2")
    model = open_published(parser.parse_args().checkout)
    answers = {name: answer(model, inputs) for name, inputs in random_inputs().items()}
    for name, velocity in answers.items():
        print(f"{name}: standard deviation {velocity.std():.3f}, largest {velocity.abs().max():.3f}")
    chain = chained(model)
    print(f"second clip: standard deviation {chain['second'].std():.3f}, noise levels {chain['sigmas'].tolist()}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(answers, GOLDEN)
    save_file(chain, CHAIN)


if __name__ == "__main__":
    main()
