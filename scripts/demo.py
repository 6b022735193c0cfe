"""Three real jobs, end to end, with the official client: server, queue, worker, pipeline, encoder, download.

Starts a server of its own on a free port with its data in out/demo, animates a photograph, goes on from a clip and lets
a face speak, checks the MP4s and prints their paths last. The models are the two embedded demonstration ones.
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
from inferencesh import Inference

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out"
DATA = OUT / "demo"
SAMPLES = ROOT / "configs" / "samples"
SECONDS = 5
READY_WITHIN_S = 120

#: name of the MP4, its width and height, and what is asked for
JOBS: list[tuple[str, tuple[int, int], dict[str, Any]]] = [
    (
        "demo.mp4",
        (1280, 720),
        {
            "first_frame": str(SAMPLES / "coffee.jpg"),
            "prompt": "A cup of coffee on a wooden table. The camera pans right.",
        },
    ),
    (
        "demo-clip.mp4",
        (1280, 720),
        {"first_clip": str(SAMPLES / "cat-pan.mp4"), "prompt": "A cat, the camera pans right."},
    ),
    (
        "demo-speech.mp4",
        (1280, 720),
        {
            "first_frame": str(SAMPLES / "face.png"),
            "driving_audio": str(SAMPLES / "speech.wav"),
            "prompt": "A face speaks.",
        },
    ),
]
#: the first of them takes what comes with a picture and a sound, the second all the rest
MODELS = "tiny-s2v,tiny"


def main() -> int:
    """Exit status 0 when the video is there and is what was asked for."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    began = time.monotonic()
    with server() as base_url:
        say(began, f"server is ready on {base_url}")
        client = Inference(api_key="demo", base_url=base_url)
        for name, size, given in JOBS:
            output = render(client, given, began)
            urllib.request.urlretrieve(output["video"], OUT / name)
            say(began, check(OUT / name, size))
    say(began, "the embedded models work at 160x96 and 128x64 and are scaled up; output_meta says so")
    for name, _, _ in JOBS:
        print(OUT / name)
    return 0


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A server on a free loopback port for the length of the block. Its log is DATA/server.log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanbox = Path(sys.executable).with_name("wanbox")
    command = [wanbox, "serve", "--port", str(port), "--data-dir", DATA, "--models", MODELS]
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
    """Until a worker has loaded its models. Exits with the log when that does not happen."""
    give_up = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{base_url}/readyz", timeout=5):
            return
        time.sleep(0.1)
    sys.exit(f"the server did not become ready; its log:\n{log.read_text()}")


def render(client: Inference, given: dict[str, Any], began: float) -> dict[str, Any]:
    """Runs a job and prints its log lines as they come. Returns the task's output."""
    shared = {"resolution": "720P", "duration": SECONDS, "seed": 42}
    request = {"app": "alibaba/wan-2-7-i2v", "input": shared | given}
    say(began, given["prompt"])
    printed: set[str] = set()
    task: Any = {}
    for task in client.run(request, stream=True):
        for line in [line["content"] for line in task.get("logs") or []]:
            if line not in printed:
                say(began, line)
            printed.add(line)
    return task["output"]


def check(video: Path, size: tuple[int, int]) -> str:
    """Decodes the video and returns what it is. Exits when it is not what was asked for."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        seconds = (container.duration or 0) / av.time_base
        rate = stream.average_rate or 0
        facts = f"{stream.width}x{stream.height}, {frames} frames, {seconds:.2f} s, {stream.codec_context.name}"
        as_asked = (stream.width, stream.height) == size and frames == SECONDS * rate
    if not as_asked or abs(seconds - SECONDS) > 0.01:
        sys.exit(f"{video} is not what was asked for: {facts}")
    return facts


def say(began: float, text: str) -> None:
    print(f"{time.monotonic() - began:5.1f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
