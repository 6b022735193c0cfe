"""A checkpoint folder in diffusers layout: `model_index.json` and a sub-folder with its own config for each part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wan_pipelines.errors import CheckpointError
from wan_pipelines.profile import Profile
from wan_pipelines.weights.assemble import Source
from wan_pipelines.weights.folder import model_files
from wan_pipelines.weights.keys import Part
from wan_pipelines.weights.kinds import PARTS
from wan_pipelines.weights.tensors import open_tensors

INDEX = "model_index.json"
TRANSFORMERS = ("transformer", "transformer_2")
#: class of a part whose config does not name one that is known
_CLASSES: dict[Part, str] = {
    "transformer": "WanTransformer3DModel",
    "text_encoder": "UMT5EncoderModel",
    "vae": "AutoencoderKLWan",
    "image_encoder": "CLIPVisionModel",
    "audio_encoder": "Wav2Vec2Model",
}
#: kinds of model by which transformers' configs are known, instead of by a class
_MODEL_TYPES: dict[Part, str] = {
    "text_encoder": "umt5",
    "image_encoder": "clip_vision_model",
    "audio_encoder": "wav2vec2",
}


def looks_like_one(folder: Path) -> bool:
    """Whether a folder is in this layout, or was before it lost its index."""
    return (folder / INDEX).is_file() or (folder / "transformer" / "config.json").is_file()


def read_sources(profile: Profile, folder: Path) -> dict[str, Source]:
    """The parts by the names of their sub-folders. Raises CheckpointError."""
    index = read_index(folder)
    _check_index(profile, folder, index)
    transformers = [name for name in TRANSFORMERS if name in _listed(index)]
    sources = {name: _source("transformer", folder / name) for name in transformers}
    return {**sources, **{part: _source(part, folder / part) for part in ("text_encoder", "vae", *_extra(profile))}}


def _extra(profile: Profile) -> list[Part]:
    """The encoders that only some models have."""
    encoders: dict[Part, bool] = {
        "image_encoder": profile.clip_pictures > 0,
        "audio_encoder": profile.conditioning == "s2v",
    }
    return [part for part, has in encoders.items() if has]


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`. Raises CheckpointError."""
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: no checkpoint in diffusers layout there")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def _listed(index: dict[str, Any]) -> list[str]:
    """Names of the sub-folders that the index lists."""
    return [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]


def _check_index(profile: Profile, folder: Path, index: dict[str, Any]) -> None:
    listed = _listed(index)
    for name in ("tokenizer", "text_encoder", "vae", "transformer", *_extra(profile)):
        if name not in listed:
            raise CheckpointError(f"{folder}/{INDEX} does not list {name}")
    for name in listed:
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder / name} is missing, but {INDEX} lists it")
    if "image_encoder" in listed and not profile.clip_pictures:
        raise CheckpointError(f"{folder} has an image encoder, but the profile shows the model no pictures through one")
    experts = sum(name in listed for name in TRANSFORMERS)
    if experts != (1 if profile.boundary is None else 2):
        raise CheckpointError(f"{folder} has {experts} transformers, the profile's boundary is {profile.boundary}")
    expands = bool(index.get("expand_timesteps", False))
    if expands != (profile.conditioning == "expand_timesteps"):
        raise CheckpointError(
            f"{folder}: expand_timesteps is {expands}, the profile's conditioning is {profile.conditioning}"
        )


def _source(part: Part, folder: Path) -> Source:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    config = read_json(path)
    name = _class_name(part, path, config)
    stem = "model" if part in _MODEL_TYPES else "diffusion_pytorch_model"
    return Source(part, folder, {**config, "_class_name": name}, open_tensors(model_files(folder, stem)))


def _class_name(part: Part, path: Path, config: dict[str, Any]) -> str:
    if part in _MODEL_TYPES:
        if (found := config.get("model_type")) != _MODEL_TYPES[part]:
            raise CheckpointError(f"{path}: model type {found} is not supported here, {_MODEL_TYPES[part]} is")
        return _CLASSES[part]
    name = config.get("_class_name", _CLASSES[part])
    if PARTS.get(name) != part:
        known = ", ".join(known for known, its in PARTS.items() if its == part)
        raise CheckpointError(f"{path}: class {name} is not supported here; these are: {known}")
    return name
