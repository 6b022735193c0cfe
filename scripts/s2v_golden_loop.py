"""Writes what the published S2V loop makes of two clips, autoencoder included: tests/golden/s2v/loop.safetensors.

    python scripts/s2v_golden_loop.py PATH_OF_A_CHECKOUT_OF_WAN_2_2

`WanS2V.generate` runs as it is, with the published transformer and autoencoder, both small and with random weights
(`s2v_golden.py`), float32, on a CPU. Given to it instead of computed: text states, sound states by frame, the picture
at its final size. `tests/test_s2v_loop.py` does the same with our loop and diffusers' autoencoder.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from s2v_golden import (
    AUDIO_DIM,
    AUDIO_LAYERS,
    CHANNELS,
    FOLDER,
    GUIDANCE,
    MOTION_FRAMES,
    SEED,
    SHIFT,
    STEPS,
    TEXT_DIM,
    TEXT_LEN,
    open_published,
)

LOOP = FOLDER / "loop.safetensors"
#: frames that a clip samples; its motion, 73 frames, has to fit in the 77 that the first one keeps
CLIP_FRAMES = 80
CLIPS = 2
WIDTH, HEIGHT = 64, 64
NOISE_SEED = 7
#: of both autoencoders
VAE_DIM, VAE_BLOCKS = 8, 1
#: the part of the second clip's frames [3, T, H, W] that is kept: everything would be 4 MB
KEPT = (slice(None), slice(None, None, 8), slice(None, None, 4), slice(None, None, 4))


def vae_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values for the published names: no layer is drowned, and few pixels leave the range of colours."""
    stream = np.random.RandomState(SEED + 2)
    return {name: _weight(stream, name, shapes[name]) for name in sorted(shapes)}


def _weight(stream: np.random.RandomState, name: str, shape: tuple[int, ...]) -> Tensor:
    values = torch.from_numpy(stream.standard_normal(shape)).float()
    if name.endswith("gamma"):
        return 1 + 0.2 * values
    if name.endswith("bias"):
        return 0.1 * values
    gain = 0.3 if name == "decoder.head.2.weight" else 3.0 if name == "encoder.head.2.weight" else 1.0
    return gain * values / (values[0].numel() ** 0.5)


def loop_inputs() -> dict[str, Tensor]:
    """Text states, states of the sound for every frame of both clips, and the picture [H, W, 3] as bytes."""
    stream = np.random.RandomState(SEED + 3)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(stream.standard_normal(shape)).float()

    coarse = torch.from_numpy(stream.randint(0, 256, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8))
    return {
        "text": draw(TEXT_LEN - 5, TEXT_DIM),
        "negative": draw(3, TEXT_DIM),
        "audio": draw(1, AUDIO_LAYERS, AUDIO_DIM, CLIPS * CLIP_FRAMES),
        "picture": coarse.repeat_interleave(8, 0).repeat_interleave(8, 1),
    }


def open_loop(checkout: Path, inputs: Mapping[str, Tensor]) -> Any:
    """The published `WanS2V`, put together without its `__init__`, which loads 46 GB onto a GPU."""
    model = open_published(checkout)
    _stand_in("decord", VideoReader=None)
    _stand_in("torchvision", transforms=None)
    _stand_in("torchvision.transforms", Resize=_keep, CenterCrop=_keep, ToTensor=lambda: _to_tensor)
    _stand_in("torchvision.transforms.functional")
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]  # pyright: ignore[reportAttributeAccessIssue]
    for name, what in (("fsdp", "shard_model"), ("sequence_parallel", "sp_attn_forward")):
        _stand_in(f"wan.distributed.{name}", **{what: None, "sp_dit_forward": None})
    _stand_in("wan.modules.s2v.audio_encoder", AudioEncoder=None)
    _stand_in("wan.modules.t5", T5EncoderModel=None)
    published: Any = importlib.import_module("wan.speech2video")
    loop = object.__new__(published.WanS2V)
    texts = {"told": inputs["text"], "untold": inputs["negative"]}
    settings = {
        "device": torch.device("cpu"),
        "param_dtype": torch.float32,
        "rank": 0,
        "t5_cpu": True,
        "init_on_cpu": False,
        "num_train_timesteps": 1000,
        "motion_frames": MOTION_FRAMES,
        "drop_first_motion": True,
        "noise_model": model,
        "vae": _open_vae(),
        "text_encoder": lambda prompts, device: [texts[prompt] for prompt in prompts],
        "encode_audio": lambda path, infer_frames: (inputs["audio"], CLIPS),
    }
    for name, value in settings.items():
        setattr(loop, name, value)
    return loop


def _open_vae() -> Any:
    """`Wan2_1_VAE` around a small network: its own constructor has no place for sizes."""
    module: Any = importlib.import_module("wan.modules.vae2_1")
    sizes = {"dim": VAE_DIM, "z_dim": CHANNELS, "num_res_blocks": VAE_BLOCKS}
    small = module.WanVAE_(**sizes, temperal_downsample=[False, True, True])
    small.load_state_dict(vae_weights({name: tuple(value.shape) for name, value in small.state_dict().items()}))
    module._video_vae = lambda **_: small
    return module.Wan2_1_VAE(vae_pth="", device="cpu")


def _stand_in(name: str, **contents: Any) -> None:
    """A module of packages that are not needed here."""
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


def _keep(_: object) -> Any:
    """A transform that leaves the picture as it is: it has the size already."""
    return lambda picture: picture


def _to_tensor(picture: Image.Image) -> Tensor:
    """[3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def run(loop: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Noise levels, motion and latents of the second clip, and a part of its frames."""
    seen = SimpleNamespace(decoded=[], sigmas=None)
    decode, published = loop.vae.decode, sys.modules["wan.speech2video"]
    scheduler: Any = published.FlowUniPCMultistepScheduler

    class Noted(scheduler):
        def set_timesteps(self, *args: Any, **options: Any) -> None:
            super().set_timesteps(*args, **options)
            seen.sigmas = self.sigmas

    def noted(latents: Tensor) -> list[Tensor]:
        seen.decoded.append(latents.clone())
        return decode(latents)

    loop.vae.decode = noted
    published.FlowUniPCMultistepScheduler = Noted  # pyright: ignore[reportAttributeAccessIssue]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        Image.fromarray(inputs["picture"].numpy()).save(picture)
        video = loop.generate(
            "told",
            str(picture),
            "",
            False,
            None,
            None,
            None,
            num_repeat=CLIPS,
            max_area=WIDTH * HEIGHT,
            infer_frames=CLIP_FRAMES,
            shift=SHIFT,
            sampling_steps=STEPS,
            guide_scale=GUIDANCE,
            n_prompt="untold",
            seed=NOISE_SEED,
            offload_model=False,
        )
    latent_frames = CLIP_FRAMES // 4
    motion, latents = seen.decoded[1].split([seen.decoded[1].shape[2] - latent_frames, latent_frames], dim=2)
    kept = {"motion": motion, "latents": latents, "frames": video[:, -CLIP_FRAMES:][KEPT], "sigmas": seen.sigmas}
    return {name: tensor.contiguous() for name, tensor in kept.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of Wan-Video/Wan2.2")
    inputs = loop_inputs()
    made = run(open_loop(parser.parse_args().checkout, inputs), inputs)
    for name, tensor in made.items():
        print(f"{name}: {tuple(tensor.shape)}, standard deviation {tensor.std():.3f}, largest {tensor.abs().max():.3f}")
    save_file(made, LOOP)


if __name__ == "__main__":
    main()
