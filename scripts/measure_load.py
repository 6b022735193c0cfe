"""How much host memory the loading of a large checkpoint takes: peak over size of the files.

Writes a random transformer of the given size into a folder, beside the small parts of a miniature, and loads it in
processes of their own, whose peak the kernel keeps (VmHWM in /proc/self/status). That peak counts mapped pages of
the files as well as memory of the process's own: both are told, and the first can be given back at any moment.

    python scripts/measure_load.py /tmp/scratch --gb 4
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from wan_pipelines.load import load_checkpoint, silence_progress_bars
from wan_pipelines.profile import load_profile
from wan_pipelines.tiny import TinySpec, build_tiny
from wan_pipelines.weights.assemble import build

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
#: of the transformer: that of Wan 2.2 TI2V-5B, so that single tensors are as large as in real files
WIDTH, FEED_FORWARD = 3072, 14336
SHARD_BYTES = 2_000_000_000
#: dtype on disk, dtype in memory
CASES = (("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float32", "float32"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty place for the checkpoint; removed afterwards")
    parser.add_argument("--gb", type=float, default=4.0, help="size of the transformer on disk in GB")
    parser.add_argument("--child", nargs=2, metavar=("CHECKPOINT", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    silence_progress_bars()
    if args.child:
        print(json.dumps(measure(Path(args.child[0]), args.child[1])))
        return
    print(f"{'on disk':10} {'loaded as':10} {'GB':>6} {'peak/size':>9} {'own/size':>9} {'start GB':>9} {'seconds':>8}")
    for stored, loaded in CASES:
        folder = args.folder / stored
        size = write_checkpoint(folder, args.gb * 1e9, getattr(torch, stored))
        print_row(stored, loaded, size, run_child(folder, loaded))
        shutil.rmtree(folder)


def print_row(stored: str, loaded: str, size: int, seen: dict[str, float]) -> None:
    peak, own = seen["peak"] - seen["start"], seen["own"] - seen["start_own"]
    row = f"{size / 1e9:6.2f} {peak / size:9.2f} {own / size:9.2f} {seen['start'] / 1e9:9.2f} {seen['seconds']:8.1f}"
    print(f"{stored:10} {loaded:10} {row}", flush=True)


def run_child(folder: Path, dtype: str) -> dict[str, float]:
    """The load in a fresh process."""
    command = [sys.executable, __file__, str(folder), "--child", str(folder), dtype]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(folder: Path, dtype: str) -> dict[str, float]:
    """Bytes in memory before the load, at its peak, and of the process's own after it; and its seconds."""
    profile = replace(load_profile("tiny", CONFIGS), weights_from="random")
    before, began = status(), time.monotonic()
    checkpoint = load_checkpoint(profile, folder, torch.device("cpu"), dtype)
    seconds = time.monotonic() - began
    assert checkpoint.experts.high.config["ffn_dim"] == FEED_FORWARD
    after = status()
    # what is not backed by a file; at its highest at the end, when everything is there
    start = {"start": before["VmRSS"], "start_own": before["RssAnon"]}
    return {**start, "peak": after["VmHWM"], "own": after["RssAnon"], "seconds": seconds}


def status() -> dict[str, int]:
    """This process's memory in bytes, as the kernel counts it."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def write_checkpoint(folder: Path, wanted: float, dtype: torch.dtype) -> int:
    """A miniature with a transformer of about `wanted` bytes. Bytes on disk."""
    build_tiny(TinySpec(), folder)
    target = folder / "transformer"
    small = json.loads((target / "config.json").read_text())
    (target / "diffusion_pytorch_model.safetensors").unlink()
    config = {**small, "num_attention_heads": WIDTH // 128, "attention_head_dim": 128, "ffn_dim": FEED_FORWARD}
    config["num_layers"] = layers_for(config, wanted / dtype.itemsize)
    (target / "config.json").write_text(json.dumps(config))
    shards = list(in_shards(config, dtype))
    for number, names in enumerate(shards, 1):
        path = target / f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: random(shape, dtype) for name, shape in names.items()}, path, {"format": "pt"})
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def layers_for(config: dict[str, Any], parameters: float) -> int:
    """Blocks that make up about this many parameters."""
    one, two = (sum(value.numel() for value in model_of(config, layers).parameters()) for layers in (1, 2))
    return max(1, round((parameters - one) / (two - one)) + 1)


def model_of(config: dict[str, Any], layers: int) -> WanTransformer3DModel:
    return build({**config, "num_layers": layers})  # pyright: ignore[reportReturnType]


def in_shards(config: dict[str, Any], dtype: torch.dtype) -> Iterator[dict[str, torch.Size]]:
    """Names and shapes, shard by shard."""
    shard: dict[str, torch.Size] = {}
    size = 0
    for name, value in model_of(config, config["num_layers"]).named_parameters():
        if shard and size + value.numel() * dtype.itemsize > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = value.shape
        size += value.numel() * dtype.itemsize
    yield shard


def random(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, dtype=dtype).sub_(0.5).mul_(0.02)


if __name__ == "__main__":
    main()
