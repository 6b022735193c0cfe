"""Miniatures of the Wan checkpoints: real classes, real folder layout, random weights, no download.

They exist so that everything around the weights can be run and tested on two CPU cores. The same seed gives the
same files; a few megabytes, a second or two.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from wan_pipelines.profile import Profile

Z_DIM = 16
TEXT_DIM = 32


@dataclass(frozen=True, slots=True)
class TinySpec:
    """Which of the Wan layouts to build in miniature."""

    #: TI2V-5B: per-token timesteps instead of concatenated condition latents
    expand_timesteps: bool = False
    #: fraction of the noise range where the second expert takes over; None builds one expert
    boundary: float | None = None
    #: Wan 2.2 layout of the autoencoder (stride 16, residual, patch 2) or the one of 2.1 (stride 8)
    vae22: bool = True
    seed: int = 0


def tiny_spec(profile: Profile) -> TinySpec:
    """The miniature that fits a profile with random weights."""
    return TinySpec(expand_timesteps=profile.conditioning == "expand_timesteps", boundary=profile.boundary)


def build_tiny(spec: TinySpec, folder: Path) -> None:
    """Write the checkpoint in diffusers layout. The folder appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(spec, scratch)
        scratch.chmod(0o755)
        _publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(spec: TinySpec, folder: Path) -> None:
    parts = _parts(spec)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "boundary_ratio": spec.boundary,
        "expand_timesteps": spec.expand_timesteps,
        **{name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _publish(scratch: Path, folder: Path) -> None:
    try:
        scratch.rename(folder)
    except OSError:
        # another process was faster; its files are the same
        if not (folder / "model_index.json").is_file():
            raise


def _parts(spec: TinySpec) -> dict[str, Any]:
    """The sub-folders of the checkpoint, by name. The order is part of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        parts = {
            "tokenizer": _tokenizer(),
            "text_encoder": _text_encoder(),
            "vae": _vae(spec),
            "scheduler": _scheduler(),
            "transformer": _transformer(spec),
        }
        return parts if spec.boundary is None else {**parts, "transformer_2": _transformer(spec)}


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte: every language, no unknowns. Ends with </s>, as T5 does."""
    alphabet = ["<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def _text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=259,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return UMT5EncoderModel(config).eval()


def _vae(spec: TinySpec) -> AutoencoderKLWan:
    layout = (
        {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
        if spec.vae22
        else {}
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=Z_DIM,
        num_res_blocks=1,
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
        **layout,
    ).eval()
    _soften(vae.decoder.conv_out)
    return vae


@torch.no_grad()
def _soften(conv: nn.Conv3d) -> None:
    """Give all pixels of a patch one and the same average: soft patches of colour instead of a fine grid."""
    by_colour = conv.weight.unflatten(0, (3, -1))  # [3, patch pixels, C, 3, 3, 3]
    conv.weight.copy_(2.5 * by_colour.mean(dim=(1, 3, 4, 5), keepdim=True).expand_as(by_colour).flatten(0, 1))
    if conv.bias is not None:
        conv.bias.zero_()


def _transformer(spec: TinySpec) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=Z_DIM if spec.expand_timesteps else 2 * Z_DIM + 4,
        out_channels=Z_DIM,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=128,
        num_layers=2,
    ).eval()


def _scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
