"""One real job, end to end, with the official client: server, queue, worker, pipeline, encoder, download.

Starts a server of its own on a free port with its data in out/demo, animates a picture that it draws itself, checks
the MP4 and prints its path last. Uses the tiny random-weight checkpoint, so it shows the machinery, not the beauty.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from inferencesh import Inference
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out"
DATA = OUT / "demo"
WIDTH, HEIGHT, SECONDS = 1280, 720, 5
READY_WITHIN_S = 120


def main() -> int:
    """Exit status 0 when the video is there and is what was asked for."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    picture = DATA / "first_frame.png"
    draw_hills().save(picture)
    began = time.monotonic()
    with server() as base_url:
        say(began, f"server is ready on {base_url}")
        output = animate(Inference(api_key="demo", base_url=base_url), picture, began)
        video = OUT / "demo.mp4"
        urllib.request.urlretrieve(output["video"], video)
    say(began, check(video))
    say(began, "the embedded checkpoint has random weights: expect moving colours, not hills")
    print(video)
    return 0


def draw_hills() -> Image.Image:
    """A sun over three rows of hills: the first frame."""
    sky = np.linspace((250, 200, 150), (90, 140, 220), HEIGHT)[::-1].astype(np.uint8)  # [H, 3]
    image = Image.fromarray(np.repeat(sky[:, None], WIDTH, axis=1))
    draw = ImageDraw.Draw(image)
    draw.ellipse((860, 120, 1040, 300), fill=(255, 240, 190))
    x = np.arange(WIDTH)
    for row, colour in enumerate([(120, 140, 130), (70, 110, 80), (30, 70, 45)]):
        ridge = 430 + 90 * row + 60 * np.sin(x / (190 - 40 * row) + 2 * row)
        outline = [*zip(x.tolist(), ridge.tolist(), strict=True), (WIDTH, HEIGHT), (0, HEIGHT)]
        draw.polygon(outline, fill=colour)
    return image


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A server on a free loopback port for the length of the block. Its log is DATA/server.log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanbox = Path(sys.executable).with_name("wanbox")
    command = [wanbox, "serve", "--port", str(port), "--data-dir", DATA]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("WANBOX_")}
    log = DATA / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=settings, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
    base_url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(base_url, process, log)
        yield base_url
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(base_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a worker has loaded its model. Exits with the log when that does not happen."""
    give_up = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{base_url}/readyz", timeout=5):
            return
        time.sleep(0.1)
    sys.exit(f"the server did not become ready; its log:\n{log.read_text()}")


def animate(client: Inference, picture: Path, began: float) -> dict[str, Any]:
    """Runs the job and prints its log lines as they come. Returns the task's output."""
    request = {
        "app": "alibaba/wan-2-7-i2v",
        "input": {
            "prompt": "The sun rises over the hills, the camera drifts to the right.",
            "first_frame": str(picture),
            "resolution": "720P",
            "duration": SECONDS,
            "seed": 42,
        },
    }
    printed: set[str] = set()
    task: Any = {}
    for task in client.run(request, stream=True):
        for line in [line["content"] for line in task.get("logs") or []]:
            if line not in printed:
                say(began, line)
            printed.add(line)
    return task["output"]


def check(video: Path) -> str:
    """Decodes the video and returns what it is. Exits when it is not what was asked for."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        seconds = (container.duration or 0) / av.time_base
        rate = stream.average_rate or 0
        facts = f"{stream.width}x{stream.height}, {frames} frames, {seconds:.2f} s, {stream.codec_context.name}"
        as_asked = (stream.width, stream.height) == (WIDTH, HEIGHT) and frames == SECONDS * rate
    if not as_asked or abs(seconds - SECONDS) > 0.01:
        sys.exit(f"{video} is not what was asked for: {facts}")
    return facts


def say(began: float, text: str) -> None:
    print(f"{time.monotonic() - began:5.1f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
