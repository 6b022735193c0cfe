"""Jobs for the embedded checkpoint through the real client, and their frames at the size that it works at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import torch
from inferencesh import Inference
from PIL import Image
from torch import Tensor

from sdk_input import APP, COMPLETED
from server_process import ROOT, Server

SAMPLES = ROOT / "configs" / "samples"
#: what the model works at, without the rows that a 16:9 output cuts off
SIZE = (160, 90)


def rendered(server: Server, folder: Path, **given: Any) -> Path:
    """The MP4 of a job with these inputs; a path is uploaded."""
    client = Inference(api_key="any", base_url=server.base_url)
    files = {name: str(value) for name, value in given.items() if isinstance(value, Path)}
    task = client.run({"app": APP, "input": {"resolution": "720P", "duration": 2, "seed": 3} | given | files})
    assert isinstance(task, dict)
    assert task["status"] == COMPLETED
    path = folder / "video.mp4"
    path.write_bytes(httpx.get(task["output"]["video"]).raise_for_status().content)
    return path


def decoded(path: Path) -> Tensor:
    """Frames [T, 3, 90, 160] in [0, 1]."""
    with av.open(str(path)) as container:
        return torch.stack([as_tensor(frame.to_image()) for frame in container.decode(video=0)])


def as_tensor(image: Image.Image) -> Tensor:
    """The middle of a picture at SIZE: [3, H, W] in [0, 1]."""
    scale = max(SIZE[0] / image.width, SIZE[1] / image.height)
    small = image.convert("RGB").resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (small.width - SIZE[0]) // 2, (small.height - SIZE[1]) // 2
    pixels = np.asarray(small.crop((left, top, left + SIZE[0], top + SIZE[1])), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)
