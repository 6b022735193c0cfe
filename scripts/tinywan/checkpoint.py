"""Writes the trained parts in diffusers folder layout, in half precision."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import nn


def write_checkpoint(folder: Path, parts: dict[str, Any], shift: float) -> int:
    """Write tokenizer, text_encoder, vae and transformer to `folder`. Returns the bytes of all its files."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    parts = {**parts, "scheduler": scheduler}
    for name, part in parts.items():
        _halved(part).save_pretrained(folder / name)
    index = {
        "_class_name": "WanImageToVideoPipeline",
        "boundary_ratio": None,
        "expand_timesteps": False,
        **{name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _halved(part: Any) -> Any:
    return copy.deepcopy(part).half() if isinstance(part, nn.Module) else part
