"""What a media file really is, found by decoding it in a child process that may fail without harm.

The kind follows from the content (magic bytes, then a real decode), never from a name or a declared type.
`python -m wan_server.probe FILE` is the child: it limits its own memory, CPU time and writes, prints one JSON
object and ends. Lengths are counted over the packets, because headers lie.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_server.probe_image import inspect_image
from wan_server.sniff import Magic, sniff

if TYPE_CHECKING:
    from av.container import InputContainer

ADDRESS_SPACE = 3 * 1024**3
MAX_FRAME_PIXELS = 8192 * 8192
MAX_DECODE_PACKETS = 500
MAX_PACKETS = 2_000_000


@dataclass(frozen=True, slots=True)
class Probe:
    """Facts about one file. `error` says why it cannot be used; such a file mostly has the kind `unknown`."""

    #: image | audio | video | unknown
    kind: str
    #: jpeg, png, wav, mp4 ... (see sniff.py); empty when nothing is recognised
    format: str
    #: bytes
    size: int
    #: pixels as shown, after the rotation that the file asks for
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    #: frames shown per second on average
    fps: float | None = None
    codec: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    has_audio: bool = False
    #: some pixel is not opaque
    has_alpha: bool = False
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Probe:
        return cls(**data)


def probe_file(path: Path, timeout_s: float = 20) -> Probe:
    """Probes `path` in a child process; bad media gives a Probe with `error`, never an exception."""
    size = path.stat().st_size
    if size == 0:
        return Probe("unknown", "", 0, error="the file is empty")
    command = [sys.executable, "-B", "-m", "wan_server.probe", str(path.resolve())]
    try:
        done = subprocess.run(
            [*command, str(math.ceil(timeout_s))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            env=_child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe("unknown", "", size, error="the file takes too long to decode")
    if done.returncode != 0:
        return Probe("unknown", "", size, error="the file breaks the decoder")
    return Probe.from_json(json.loads(done.stdout))


def _child_environment() -> dict[str, str]:
    package_home = str(Path(__file__).resolve().parents[1])
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**inherited, "PYTHONPATH": package_home, "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


def inspect(path: Path) -> Probe:
    """Decodes `path` in this process. Only for the child: a hostile file may end the process."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    magic = sniff(head)
    if magic is None:
        return Probe("unknown", "", size, error="the format is not recognised")
    known = Probe(magic.kind, magic.format, size)
    if not magic.reader:
        return known if magic.kind != "unknown" else replace(known, error=f"{magic.format} is not media")
    inspect_kind = inspect_image if magic.kind == "image" else _inspect_streams
    return inspect_kind(path, magic, known)


def _unreadable(known: Probe, reason: str) -> Probe:
    return replace(known, kind="unknown", error=reason)


@dataclass(slots=True)
class Track:
    """One stream while its packets go by: the span of its times, the first frame that decodes."""

    stream: Any
    start: float = math.inf
    end: float = -math.inf
    packets: int = 0
    corrupt: bool = False
    frame: Any = None
    tried: int = 0

    def take(self, packet: Any) -> None:
        if self.frame is None and self.tried < MAX_DECODE_PACKETS:
            self._try_decode(packet)
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or packet.size == 0:
            return
        self.packets += 1
        self.corrupt |= packet.is_corrupt
        self.start = min(self.start, float(stamp * packet.time_base))
        self.end = max(self.end, float((stamp + (packet.duration or 0)) * packet.time_base))

    def _try_decode(self, packet: Any) -> None:
        from av.error import FFmpegError

        self.tried += 1
        try:
            self.frame = next(iter(packet.decode()), None)
        except FFmpegError:  # the next key frame may be whole
            return

    @property
    def seconds(self) -> float:
        return round(max(0.0, self.end - self.start), 3) if self.packets else 0.0


def _inspect_streams(path: Path, magic: Magic, known: Probe) -> Probe:
    import av
    from av.error import FFmpegError

    options = {"protocol_whitelist": "file"}  # a playlist inside must not open the network
    try:
        with av.open(str(path), format=magic.reader, options=options, metadata_errors="ignore") as container:
            return _describe_streams(container, known)
    except FFmpegError as error:
        return _unreadable(known, f"the file cannot be decoded ({error.strerror})")
    except MemoryError:
        return _unreadable(known, "the file needs too much memory")


def _describe_streams(container: InputContainer, known: Probe) -> Probe:
    video, audio = _tracks(container)
    if video is None and audio is None:
        return _unreadable(known, "no picture and no sound in it")
    if video is not None and video.stream.width * video.stream.height > MAX_FRAME_PIXELS:
        sized = replace(known, width=video.stream.width, height=video.stream.height)
        return replace(sized, error=f"more than {MAX_FRAME_PIXELS} pixels")
    for packet, track in _walk(container, [track for track in (video, audio) if track is not None]):
        track.take(packet)
    if video is not None and video.packets:
        return _describe_video(video, audio, known)
    return _describe_audio(audio, known) if audio is not None else _unreadable(known, "no frame in it")


def _tracks(container: InputContainer) -> tuple[Track | None, Track | None]:
    """The first real video stream (not a cover picture) and the first sound stream."""
    from av.stream import Disposition

    streams = container.streams
    moving = [s for s in streams.video if not s.disposition & Disposition.attached_pic]
    for stream in (*moving[:1], *streams.audio[:1]):
        stream.codec_context.thread_count = 1
    return (Track(moving[0]) if moving else None, Track(streams.audio[0]) if streams.audio else None)


def _walk(container: InputContainer, tracks: list[Track]) -> Iterator[tuple[Any, Track]]:
    from av.error import FFmpegError

    by_index = {track.stream.index: track for track in tracks}
    try:
        for count, packet in enumerate(container.demux([track.stream for track in tracks])):
            if count >= MAX_PACKETS:
                return
            yield packet, by_index[packet.stream_index]
    except FFmpegError:  # the rest is missing or broken; what came counts
        for track in tracks:
            track.corrupt = True


def _describe_video(video: Track, audio: Track | None, known: Probe) -> Probe:
    if video.frame is None:
        return _unreadable(known, "no frame can be decoded")
    width, height = video.frame.width, video.frame.height
    if round(video.frame.rotation) % 180:
        width, height = height, width
    heard = audio is not None and audio.frame is not None
    facts = replace(
        known,
        kind="video",
        width=width,
        height=height,
        seconds=video.seconds,
        fps=round(video.packets / video.seconds, 3) if video.seconds else None,
        codec=video.stream.codec_context.codec.canonical_name,
        has_audio=heard,
        **(_sound_facts(audio) if heard and audio is not None else {}),
    )
    return _unreadable(facts, "truncated") if _is_cut(video) else facts


def _is_cut(video: Track) -> bool:
    """Whether the index promises frames that the file does not hold."""
    promised = video.stream.frames
    declared = float((video.stream.duration or 0) * video.stream.time_base)
    return video.corrupt or (video.packets < promised and video.seconds < 0.9 * declared - 0.5)


def _describe_audio(audio: Track, known: Probe) -> Probe:
    if audio.frame is None:
        return _unreadable(known, "no sound can be decoded")
    name = "m4a" if known.format in ("mp4", "mov", "3gp") else known.format
    codec = audio.stream.codec_context.codec.canonical_name
    facts = replace(known, kind="audio", format=name, seconds=audio.seconds, codec=codec, has_audio=True)
    return replace(facts, **_sound_facts(audio))


def _sound_facts(audio: Track) -> dict[str, int]:
    return {"sample_rate": audio.frame.sample_rate, "channels": audio.frame.layout.nb_channels}


def limit_self(cpu_seconds: int) -> None:
    """Caps this process: memory, CPU time, no core file, no byte written to any file."""
    for name, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(name, (value, value))


def main(arguments: list[str]) -> None:
    """Child entry: FILE CPU_SECONDS."""
    limit_self(int(arguments[1]))
    sys.stdout.write(json.dumps(inspect(Path(arguments[0])).to_json()))


if __name__ == "__main__":
    main(sys.argv[1:])
