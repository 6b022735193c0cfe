"""Writes the trained parts in diffusers folder layout, in half precision."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import nn

#: parts of wan-tiny that its sister has as well, file by file
SHARED = ("tokenizer", "text_encoder", "vae")


def write_checkpoint(folder: Path, parts: dict[str, Any], shift: float) -> int:
    """Write tokenizer, text_encoder, vae and transformer to `folder`. Returns the bytes of all its files."""
    parts = {**parts, "scheduler": _scheduler(shift)}
    for name, part in parts.items():
        _halved(part).save_pretrained(folder / name)
    about = {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": None, "expand_timesteps": False}
    _write_index(folder, {**about, **_classes(parts)})
    return _size(folder)


def write_sister(folder: Path, sibling: Path, parts: dict[str, Any], shift: float) -> int:
    """Write audio_encoder and transformer to `folder`, beside copies of the sibling's other parts; the same return."""
    parts = {**parts, "scheduler": _scheduler(shift)}
    for name in SHARED:
        shutil.copytree(sibling / name, folder / name, dirs_exist_ok=True)
    for name, part in parts.items():
        _halved(part).save_pretrained(folder / name)
    listed = json.loads((sibling / "model_index.json").read_text(encoding="utf-8"))
    about = {"_class_name": "WanSpeechToVideoPipeline", "boundary_ratio": None}
    _write_index(folder, {**about, **{name: listed[name] for name in SHARED}, **_classes(parts)})
    return _size(folder)


def _scheduler(shift: float) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def _classes(parts: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _halved(part: Any) -> Any:
    return copy.deepcopy(part).half() if isinstance(part, nn.Module) else part
