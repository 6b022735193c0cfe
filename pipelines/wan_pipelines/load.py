"""Reads a checkpoint folder in diffusers layout: strict, offline, with errors that name the file.

What is loaded is what `model_index.json` lists. Every weight must be there and every weight in the file must be
used; a folder that does not fit its profile is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from wan_pipelines.denoise import Experts
from wan_pipelines.errors import CheckpointError
from wan_pipelines.profile import Profile

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The loaded parts, in eval mode and on the device."""

    tokenizer: PreTrainedTokenizerBase
    text_encoder: UMT5EncoderModel
    vae: AutoencoderKLWan
    experts: Experts

    @property
    def vae_stride(self) -> int:
        """Pixels per latent in height and width."""
        return int(self.vae.config["scale_factor_spatial"])


def silence_progress_bars() -> None:
    """Keep the loaders' progress bars out of the worker's log."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def ensure_checkpoint(profile: Profile, folder: Path) -> None:
    """Build the miniature of a profile with random weights when its folder is not there yet."""
    if profile.weights_from == "random" and not (folder / "model_index.json").is_file():
        from wan_pipelines.tiny import build_tiny, tiny_spec

        build_tiny(tiny_spec(profile), folder)


def load_checkpoint(profile: Profile, folder: Path, device: torch.device, dtype: str | None) -> Checkpoint:
    """Load `folder` (the one that holds `model_index.json`). Raises CheckpointError.

    `dtype` is that of transformers and text encoder, by default float32 on a CPU and bfloat16 elsewhere; the
    autoencoder is float32 always, as in the published code.
    """
    chosen = _dtype(dtype, device)
    index = _read_index(folder)
    _check_index(profile, folder, index)
    experts = [_model(WanTransformer3DModel, folder / name, chosen) for name in _transformers(index)]
    vae = _model(AutoencoderKLWan, folder / "vae", torch.float32)
    for model in experts:
        _check_channels(profile, folder, model, vae.config["z_dim"])
    return Checkpoint(
        tokenizer=_tokenizer(folder / "tokenizer"),
        text_encoder=_model(UMT5EncoderModel, folder / "text_encoder", chosen).to(device),
        vae=vae.to(device),
        experts=Experts(*(model.to(device) for model in experts), boundary=profile.boundary),
    )


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    name = name or ("float32" if device.type == "cpu" else "bfloat16")
    if name not in DTYPES:
        raise CheckpointError(f"dtype: must be one of {', '.join(DTYPES)} (got {name!r})")
    return DTYPES[name]


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: no checkpoint in diffusers layout there") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return index


def _parts(index: dict[str, Any]) -> list[str]:
    """Names of the sub-folders that the index lists."""
    return [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]


def _transformers(index: dict[str, Any]) -> list[str]:
    return [name for name in ("transformer", "transformer_2") if name in _parts(index)]


def _check_index(profile: Profile, folder: Path, index: dict[str, Any]) -> None:
    parts = _parts(index)
    for name in ("tokenizer", "text_encoder", "vae", "transformer"):
        if name not in parts:
            raise CheckpointError(f"{folder}/model_index.json does not list {name}")
    for name in parts:
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder / name} is missing, but model_index.json lists it")
    if "image_encoder" in parts:
        raise CheckpointError(f"{folder}: checkpoints with an image encoder (Wan 2.1 I2V) are not supported")
    experts = len(_transformers(index))
    if experts != (1 if profile.boundary is None else 2):
        raise CheckpointError(f"{folder} has {experts} transformers, the profile's boundary is {profile.boundary}")
    expands = bool(index.get("expand_timesteps", False))
    if expands != (profile.conditioning == "expand_timesteps"):
        raise CheckpointError(
            f"{folder}: expand_timesteps is {expands}, the profile's conditioning is {profile.conditioning}"
        )


def _check_channels(profile: Profile, folder: Path, model: WanTransformer3DModel, z_dim: int) -> None:
    """Input channels: noise z, and for the concat family mask 4 and condition latents z."""
    wanted = z_dim if profile.conditioning == "expand_timesteps" else 2 * z_dim + 4
    found = model.config["in_channels"]
    if found != wanted:
        raise CheckpointError(
            f"{folder}: the transformer has {found} input channels, conditioning {profile.conditioning} needs {wanted}"
        )


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _model(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A diffusers or transformers model; both report what did not match. Pickled weights are not read."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder / 'config.json'} is missing")
    try:
        model, info = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    _check_keys(folder, info)
    return model.eval()


def _check_keys(folder: Path, info: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(kind) or ())
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(f"{folder}: {kind.replace('_', ' ')}: {', '.join(keys[:3])}{more}")
