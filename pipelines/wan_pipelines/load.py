"""Loads a checkpoint folder of any layout: strict, offline, with errors that name file and key.

A folder with `model_index.json` is read as diffusers lays it out. In any other folder the parts are found by what
the files hold: original layout, ComfyUI's single files, lightx2v's, GGUF. Every weight must be there and every weight
in the files must be used; a folder that does not fit its profile is refused before its weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn
from transformers import AutoTokenizer, CLIPVisionModel, PreTrainedTokenizerBase, UMT5EncoderModel, Wav2Vec2Model

from wan_pipelines.denoise import Experts
from wan_pipelines.errors import CheckpointError
from wan_pipelines.profile import Profile
from wan_pipelines.s2v.memory import RATE
from wan_pipelines.vace import MASK_CHANNELS
from wan_pipelines.weights.assemble import Precision, Source, complete, load_part
from wan_pipelines.weights.cache import PartCache
from wan_pipelines.weights.diffusers_folder import INDEX, TRANSFORMERS, looks_like_one, read_json, read_sources
from wan_pipelines.weights.folder import Found, scan
from wan_pipelines.weights.kinds import differences, read_config, traits_of_config
from wan_pipelines.weights.wanted import hint

__all__ = ["Checkpoint", "PartCache", "Precision", "ensure_checkpoint", "load_checkpoint", "silence_progress_bars"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: name of the part, tensors read, of how many
OnPart = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The loaded parts, in eval mode and on the device."""

    tokenizer: PreTrainedTokenizerBase
    text_encoder: UMT5EncoderModel
    vae: AutoencoderKLWan
    experts: Experts
    #: CLIP, of the models that look at pictures through one
    image_encoder: CLIPVisionModel | None = None
    #: wav2vec2, of the models that listen
    audio_encoder: Wav2Vec2Model | None = None

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
    if profile.weights_from == "random" and not (folder / INDEX).is_file():
        from wan_pipelines.tiny import build_tiny, tiny_spec

        build_tiny(tiny_spec(profile), folder)


def load_checkpoint(
    profile: Profile,
    folder: Path,
    device: torch.device | Mapping[str, torch.device],
    dtype: str | Precision | None,
    *,
    config_dir: Path | None = None,
    parts: PartCache | None = None,
    on_part: OnPart | None = None,
) -> Checkpoint:
    """Load the weights in `folder`. Raises CheckpointError; then nothing stays in memory.

    `dtype` is that of transformers and text encoder, by default float32 on a CPU and bfloat16 elsewhere; layers that
    are quantised in the file stay so, unless a `Precision` says otherwise. Autoencoder, image encoder and audio
    encoder are float32 always. `config_dir` holds the bundled configs of weights that come without. Parts that models
    have in common are loaded once per `parts`. `device` may be one for each part by name. Weights that need no
    conversion stay mapped as long as they are on the CPU.
    """
    precision = _precision(dtype, device if isinstance(device, torch.device) else device["transformer"])
    tokenizer_folder, sources = find_parts(profile, folder, config_dir)
    check_parts(profile, folder, sources, config_dir)
    tokenizer = _tokenizer(tokenizer_folder)

    def load(name: str) -> Any:
        source = sources[name]
        chosen = precision_of(source, precision)
        report = partial(on_part, name) if on_part else None
        place = device if isinstance(device, torch.device) else device[name]

        def make() -> nn.Module:
            return load_part(source, chosen, report).to(place)

        # transformers are what models differ in
        return make() if parts is None or source.part == "transformer" else parts.share(source, chosen, make)

    experts = [load(name) for name in TRANSFORMERS if name in sources]
    return Checkpoint(
        tokenizer=tokenizer,
        text_encoder=load("text_encoder"),
        vae=load("vae"),
        experts=Experts(*experts, boundary=profile.boundary),
        image_encoder=load("image_encoder") if "image_encoder" in sources else None,
        audio_encoder=load("audio_encoder") if "audio_encoder" in sources else None,
    )


def precision_of(source: Source, precision: Precision) -> Precision:
    """That of a part when transformers and text encoder have this one."""
    is_exact = source.part in ("vae", "image_encoder", "audio_encoder")
    return Precision(torch.float32, keep_quantised=False) if is_exact else precision


def _precision(wanted: str | Precision | None, device: torch.device) -> Precision:
    if isinstance(wanted, Precision):
        return wanted
    name = wanted or ("float32" if device.type == "cpu" else "bfloat16")
    if name not in DTYPES:
        raise CheckpointError(f"dtype: must be one of {', '.join(DTYPES)} (got {name!r})")
    return Precision(DTYPES[name])


def find_parts(profile: Profile, folder: Path, config_dir: Path | None) -> tuple[Path, dict[str, Source]]:
    """The tokenizer's folder, and the parts by the names that diffusers gives them. Raises CheckpointError."""
    if looks_like_one(folder):
        return folder / "tokenizer", read_sources(profile, folder)
    contents = scan(folder, config_dir) if folder.is_dir() else None
    if contents is None or not (contents.found or contents.foreign):
        raise CheckpointError(
            f"{folder / INDEX} is missing: no checkpoint in diffusers layout there, and no other{hint(profile)}"
        )
    experts = contents.experts(
        profile.boundary is not None, lambda found: _is_of(profile, found), of=profile.architecture
    )
    latents = experts[0].config["out_channels"]
    found = {
        **dict(zip(TRANSFORMERS, experts, strict=False)),
        "text_encoder": contents.one("text_encoder"),
        "vae": contents.one("vae", lambda vae: vae.config["z_dim"] == latents),
        **({"image_encoder": contents.one("image_encoder")} if profile.clip_pictures else {}),
        **({"audio_encoder": contents.one("audio_encoder")} if profile.conditioning == "s2v" else {}),
    }
    return contents.tokenizer, {name: part.source for name, part in found.items()}


def _is_of(profile: Profile, found: Found) -> bool:
    return profile.architecture in (None, found.kind.architecture)


def check_parts(profile: Profile, folder: Path, sources: Mapping[str, Source], config_dir: Path | None) -> None:
    """Raises CheckpointError when the parts do not fit each other or the profile. Nothing was read but headers."""
    configs = {name: complete(source.config) for name, source in sources.items()}
    if "audio_encoder" in sources:
        _check_preprocessor(sources["audio_encoder"].where)
    for name in TRANSFORMERS:
        if name in sources:
            _check_architecture(profile, sources[name], configs[name], config_dir)
            _check_channels(profile, folder, configs[name], configs["vae"]["z_dim"])
            _check_pictures(profile, folder, configs[name], configs.get("image_encoder"))
            _check_audio(folder, configs[name], configs.get("audio_encoder"))
            text, states = configs[name]["text_dim"], configs["text_encoder"]["d_model"]
            if text != states:
                raise CheckpointError(
                    f"{folder}: the transformer takes text states of {text}, the encoder's are {states}"
                )


def _check_architecture(profile: Profile, source: Source, config: dict[str, Any], config_dir: Path | None) -> None:
    if profile.architecture is None:
        return
    wanted = traits_of_config(read_config(profile.architecture, config_dir))
    if other := differences(traits_of_config(config), wanted):
        raise CheckpointError(f"{source.where}: is not {profile.architecture}: it has {', '.join(other)}")


def _check_channels(profile: Profile, folder: Path, config: dict[str, Any], z_dim: int) -> None:
    """Input channels: noise z, and for the concat family mask 4 and condition latents z; VACE has them apart."""
    conditioning = profile.conditioning
    wanted, found = 2 * z_dim + 4 if conditioning == "concat" else z_dim, config["in_channels"]
    if found != wanted:
        raise CheckpointError(
            f"{folder}: the transformer has {found} input channels, conditioning {conditioning} needs {wanted}"
        )
    wanted, found = 2 * z_dim + MASK_CHANNELS if conditioning == "vace" else 0, config.get("vace_in_channels", 0)
    if found != wanted:
        raise CheckpointError(f"{folder}: the transformer has {found} VACE channels, {conditioning} needs {wanted}")


def _check_pictures(profile: Profile, folder: Path, config: dict[str, Any], encoder: dict[str, Any] | None) -> None:
    """States of the image encoder that the transformer takes, and learned positions for those of two pictures."""
    wanted, found = (encoder["hidden_size"] if encoder else 0), config.get("image_dim") or 0
    if found != wanted:
        raise CheckpointError(f"{folder}: the transformer takes picture states of {found}, the encoder's are {wanted}")
    if bool(config.get("pos_embed_seq_len")) != (profile.clip_pictures == 2):
        raise CheckpointError(
            f"{folder}: the transformer has positions for {config['pos_embed_seq_len'] or 'no'} picture tokens, "
            f"the profile shows it {profile.clip_pictures} pictures"
        )


def _check_audio(folder: Path, config: dict[str, Any], encoder: dict[str, Any] | None) -> None:
    """States of the audio encoder that the transformer takes: their width, and one more than there are layers."""
    wanted = (encoder["hidden_size"], encoder["num_hidden_layers"] + 1) if encoder else (0, 0)
    found = (config.get("audio_dim", 0), config.get("audio_layers", 0))
    if found != wanted:
        raise CheckpointError(
            f"{folder}: the transformer takes {found[1]} audio states of {found[0]}, "
            f"the encoder has {wanted[1]} of {wanted[0]}"
        )


def _check_preprocessor(where: Path) -> None:
    """Sound is brought to 16 kHz and normalised; a speech model whose own preprocessor does otherwise is refused."""
    path = (where if where.is_dir() else where.parent) / "preprocessor_config.json"
    config = read_json(path) if path.is_file() else {}
    rate, normalises = config.get("sampling_rate", RATE), config.get("do_normalize", True)
    if rate != RATE or not normalises:
        asks = f"sound at {rate} Hz, {'' if normalises else 'not '}normalised"
        raise CheckpointError(f"{path}: the speech model wants {asks}; here it gets {RATE} Hz, normalised")


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
