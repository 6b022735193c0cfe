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
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from wan_pipelines.clip_vision import MEAN, STD
from wan_pipelines.denoise import Transformer
from wan_pipelines.profile import Profile
from wan_pipelines.s2v.miniature import make_audio_encoder, make_transformer
from wan_pipelines.vace import MASK_CHANNELS

Z_DIM = 16
TEXT_DIM = 32
#: width of the CLIP states, and the side of the square that CLIP sees: 16x16 patches and the class make 257 tokens
IMAGE_DIM = 48
IMAGE_SIDE = 64
IMAGE_TOKENS = 257
Layout = Literal["concat", "expand_timesteps", "text", "vace", "s2v"]
#: class of diffusers' own pipeline; for sound it has none yet, and the name is only a name
PIPELINES = {"text": "WanPipeline", "vace": "WanVACEPipeline", "s2v": "WanSpeechToVideoPipeline"}


@dataclass(frozen=True, slots=True)
class TinySpec:
    """Which of the Wan layouts to build in miniature."""

    #: what the transformer takes besides noise and text, as in a profile
    conditioning: Layout = "concat"
    #: fraction of the noise range where the second expert takes over; None builds one expert
    boundary: float | None = None
    #: Wan 2.2 layout of the autoencoder (stride 16, residual, patch 2) or the one of 2.1 (stride 8)
    vae22: bool = True
    #: pictures that the image encoder shows the cross attention; 0 builds none
    clip_pictures: int = 0
    seed: int = 0


def tiny_spec(profile: Profile) -> TinySpec:
    """The miniature that fits a profile."""
    return TinySpec(
        conditioning=profile.conditioning,
        boundary=profile.boundary,
        vae22=profile.size_multiple == 32,
        clip_pictures=profile.clip_pictures,
    )


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
    classes = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    if spec.clip_pictures:
        classes["image_processor"] = ["transformers", "CLIPImageProcessor"]
        _write_json(folder / "image_processor" / "preprocessor_config.json", _image_processor())
    own = {} if spec.conditioning in ("vace", "s2v") else {"expand_timesteps": spec.conditioning == "expand_timesteps"}
    pipeline = PIPELINES.get(spec.conditioning, "WanImageToVideoPipeline")
    index = {"_class_name": pipeline, "boundary_ratio": spec.boundary, **own, **classes}
    _write_json(folder / "model_index.json", index)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


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
        if spec.boundary is not None:
            parts["transformer_2"] = _transformer(spec)
        if spec.clip_pictures:
            parts["image_encoder"] = _image_encoder()
        if spec.conditioning == "s2v":
            parts["audio_encoder"] = make_audio_encoder()
        return parts


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
        latents_mean=torch.linspace(-0.4, 0.4, Z_DIM).tolist(),
        latents_std=torch.linspace(0.8, 1.2, Z_DIM).tolist(),
        **layout,
    ).eval()
    _spread(vae.encoder)
    _soften(vae.decoder.conv_out)
    return vae


@torch.no_grad()
def _spread(encoder: nn.Module) -> None:
    """Give the latents a spread of about 1 that comes from the picture: in fresh weights the biases drown it."""
    encoder.conv_in.weight.mul_(10)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    encoder.conv_out.weight.mul_(8)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


@torch.no_grad()
def _soften(conv: nn.Conv3d) -> None:
    """Give all pixels of a patch one and the same average: soft patches of colour instead of a fine grid."""
    by_colour = conv.weight.unflatten(0, (3, -1))  # [3, patch pixels, C, 3, 3, 3]
    conv.weight.copy_(2.5 * by_colour.mean(dim=(1, 3, 4, 5), keepdim=True).expand_as(by_colour).flatten(0, 1))
    if conv.bias is not None:
        conv.bias.zero_()


def _transformer(spec: TinySpec) -> Transformer:
    size: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "in_channels": 2 * Z_DIM + 4 if spec.conditioning == "concat" else Z_DIM,
        "out_channels": Z_DIM,
        "text_dim": TEXT_DIM,
        "freq_dim": 64,
        "ffn_dim": 128,
        "num_layers": 2,
    }
    if spec.conditioning == "s2v":
        return make_transformer(size)
    if spec.conditioning == "vace":
        return WanVACETransformer3DModel(**size, vace_layers=[0, 1], vace_in_channels=2 * Z_DIM + MASK_CHANNELS).eval()
    if not spec.clip_pictures:
        return WanTransformer3DModel(**size).eval()
    positions = IMAGE_TOKENS * 2 if spec.clip_pictures == 2 else None
    model = WanTransformer3DModel(**size, image_dim=IMAGE_DIM, added_kv_proj_dim=64, pos_embed_seq_len=positions).eval()
    embedder = model.condition_embedder.image_embedder
    if embedder is not None and embedder.pos_embed is not None:
        nn.init.normal_(embedder.pos_embed)  # zeros at first: learned, so a missing one must show
    return model


def _image_encoder() -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=64,
        projection_dim=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=IMAGE_SIDE // 16,
        hidden_act="gelu",
        initializer_range=0.2,
    )
    return CLIPVisionModel(config).eval()


def _image_processor() -> dict[str, Any]:
    """CLIP's own preprocessing, for diffusers; nothing here reads it."""
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    steps = {f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": IMAGE_SIDE},
        "crop_size": side,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": MEAN,
        "image_std": STD,
        **steps,
    }


def _scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
