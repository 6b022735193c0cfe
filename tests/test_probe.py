"""Probing: content decides, limits hold, bad media never raises."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import pytest
from PIL import Image

from media_samples import make_audio, make_clip, make_image, smooth_rgb
from wan_server.probe import Probe, probe_file
from wan_server.sniff import sniff


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds almost nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def set_durations(data: bytes, atom: bytes, ticks: int) -> bytes:
    """Overwrites the duration field of every version-0 `mvhd`, `mdhd` or `tkhd` atom."""
    offset = {b"mvhd": 20, b"mdhd": 20, b"tkhd": 24}[atom]
    out, at = bytearray(data), data.find(atom)
    while at >= 0:
        out[at + offset : at + offset + 4] = struct.pack(">I", ticks)
        at = data.find(atom, at + 4)
    return bytes(out)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "BMP", "WEBP"])
def test_pictures_are_told_by_content_whatever_they_are_called(tmp_path, name):
    probe = probe_file(make_image(tmp_path / "misleading.mp4", (320, 240), name))
    assert (probe.kind, probe.format, probe.width, probe.height) == ("image", name.lower(), 320, 240)
    assert probe.error is None
    assert not probe.has_alpha


def test_exif_rotation_swaps_the_sides(tmp_path):
    probe = probe_file(make_image(tmp_path / "a", (320, 240), "JPEG", orientation=6))
    assert (probe.width, probe.height) == (240, 320)
    probe = probe_file(make_image(tmp_path / "b", (320, 240), "JPEG", orientation=3))
    assert (probe.width, probe.height) == (320, 240)


def test_alpha_counts_only_where_it_shows(tmp_path):
    assert probe_file(make_image(tmp_path / "a", mode="RGBA", format="PNG")).has_alpha
    opaque = tmp_path / "opaque"
    Image.fromarray(smooth_rgb(64, 64)).convert("RGBA").save(opaque, "PNG")
    assert not probe_file(opaque).has_alpha
    palette = tmp_path / "palette"
    Image.new("P", (64, 64), 0).save(palette, "PNG", transparency=0)
    assert probe_file(palette).has_alpha


@pytest.mark.parametrize("name", ["WEBP", "PNG", "GIF"])
def test_animations_are_pictures_with_an_error(tmp_path, name):
    probe = probe_file(make_image(tmp_path / "a", (64, 64), name, frames=3))
    assert (probe.kind, probe.format, probe.error) == ("image", name.lower(), "animated")


def test_a_phone_jpeg_with_a_second_picture_is_no_animation(tmp_path):
    path = make_image(tmp_path / "a", (320, 240), "MPO", frames=2)
    probe = probe_file(path)
    assert (probe.kind, probe.format, probe.error) == ("image", "jpeg", None)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(30000, 30000))
    probe = probe_file(path)
    assert (probe.format, probe.width, probe.height) == ("png", 30000, 30000)
    assert probe.error == "more than 64000000 pixels"


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("wav", {}),
        ("wav", {"codec": "pcm_s24le", "channels": 2, "rate": 44100}),
        ("wav", {"codec": "pcm_f32le"}),
        ("wav", {"codec": "pcm_mulaw", "rate": 8000}),
        ("mp3", {"rate": 44100, "channels": 2}),
        ("mp3", {"rate": 44100, "channels": 2, "cover": True}),
    ],
)
def test_sound_is_measured(tmp_path, name, kwargs):
    probe = probe_file(make_audio(tmp_path / "a.png", 2.5, name, **kwargs))
    assert (probe.kind, probe.format, probe.error) == ("audio", name, None)
    assert probe.seconds == pytest.approx(2.5, abs=0.08)
    assert probe.sample_rate == kwargs.get("rate", 16000)
    assert probe.channels == kwargs.get("channels", 1)
    assert probe.has_audio


@pytest.mark.parametrize("size_field", [0xFFFFFFFF, 100, 0])
def test_wav_length_is_counted_not_read_from_the_riff_header(tmp_path, size_field):
    path = make_audio(tmp_path / "a.wav", 2)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", size_field)
    path.write_bytes(data)
    assert probe_file(path).seconds == pytest.approx(2, abs=0.02)


def test_a_streamed_wav_with_no_data_size_is_counted(tmp_path):
    path = make_audio(tmp_path / "a.wav", 2)
    data = bytearray(path.read_bytes())
    at = data.find(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert probe_file(path).seconds == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize(
    ("name", "told"), [("mp4", "mp4"), ("mov", "mov"), ("webm", "webm"), ("matroska", "mkv"), ("avi", "avi")]
)
def test_clips_are_named_by_their_true_format(tmp_path, name, told):
    probe = probe_file(make_clip(tmp_path / "clip.jpg", (320, 240), 2, 10, format=name))
    assert (probe.kind, probe.format, probe.width, probe.height) == ("video", told, 320, 240)
    assert probe.seconds == pytest.approx(2, abs=0.01)
    assert probe.fps == pytest.approx(10)
    assert not probe.has_audio


def test_clip_sound_is_reported(tmp_path):
    probe = probe_file(make_clip(tmp_path / "a.mp4", audio=True))
    assert probe.has_audio
    assert (probe.codec, probe.sample_rate, probe.channels) == ("h264", 48000, 2)


def test_display_matrix_swaps_the_sides(tmp_path):
    probe = probe_file(make_clip(tmp_path / "a.mov", (320, 240), rotation=90))
    assert (probe.width, probe.height) == (240, 320)


def test_variable_frame_rate_gives_the_average(tmp_path):
    probe = probe_file(make_clip(tmp_path / "a.mp4", pts=[0, 100, 200, 1000, 1500, 2500]))
    assert probe.seconds == pytest.approx(2.6, abs=0.2)
    assert probe.fps == pytest.approx(6 / (probe.seconds or 0), abs=0.01)


@pytest.mark.parametrize("atom", [b"mvhd", b"mdhd", b"tkhd"])
@pytest.mark.parametrize("ticks", [0, 7_000_000])
def test_a_lying_duration_header_does_not_count(tmp_path, atom, ticks):
    path = make_clip(tmp_path / "a.mp4", (320, 240), 2, 10)
    path.write_bytes(set_durations(path.read_bytes(), atom, ticks))
    assert probe_file(path).seconds == pytest.approx(2, abs=0.01)


def test_sound_in_a_clip_container_is_sound(tmp_path):
    probe = probe_file(make_audio(tmp_path / "a.mp4", 2, "mp4", rate=48000))
    assert (probe.kind, probe.format) == ("audio", "m4a")


def test_a_cut_clip_is_an_error(tmp_path):
    path = make_clip(tmp_path / "a.mp4", (320, 240), 2, 10)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    probe = probe_file(path)
    assert probe.kind == "unknown"
    assert probe.error


def test_a_cut_clip_whose_index_is_whole_is_an_error(tmp_path):
    path = make_clip(tmp_path / "a.mp4", (320, 240), 3, 10)
    data = path.read_bytes()
    assert data.find(b"mdat") < data.find(b"moov")
    start, moov = data.find(b"mdat"), data.find(b"moov") - 4
    blank = b"\0" * ((moov - start) * 3 // 4)
    path.write_bytes(data[: moov - len(blank)] + blank + data[moov:])
    assert probe_file(path).kind in ("video", "unknown")  # zeros decode as nothing; must not raise
    faststart = tmp_path / "fast.mp4"
    remux_faststart(data, faststart)
    cut = faststart.read_bytes()
    faststart.write_bytes(cut[: len(cut) * 6 // 10])
    probe = probe_file(faststart)
    assert (probe.kind, probe.error) == ("unknown", "truncated")


def remux_faststart(data: bytes, path: Path) -> None:
    """Remuxes a clip with its index first."""
    options = {"movflags": "faststart"}
    with av.open(io.BytesIO(data), "r") as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_a_cut_picture_is_an_error(tmp_path, name):
    path = make_image(tmp_path / "a", (320, 240), name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    probe = probe_file(path)
    assert (probe.kind, probe.format) == ("unknown", name.lower())
    assert probe.error is not None
    assert str(tmp_path) not in probe.error


@pytest.mark.parametrize(
    ("data", "told", "error"),
    [
        (b"", "", "the file is empty"),
        (b"hello world, this is text\n" * 20, "", "the format is not recognised"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n", "", "the format is not recognised"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "html", "html is not media"),
        (b"\xff\xfb\x90\x00" + bytes(range(256)) * 8, "mp3", None),
        (b"RIFF\x00\x00\x00\x00WAVE", "wav", None),
        (b"\0\0\0\x18ftypisom" + b"\0" * 400, "mp4", None),
        (b"\x1aE\xdf\xa3" + b"\x01" * 500, "mkv", None),
    ],
)
def test_other_content_is_unknown_with_a_reason(tmp_path, data, told, error):
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    probe = probe_file(path)
    assert (probe.kind, probe.format) == ("unknown", told)
    assert probe.size == len(data)
    assert probe.error == error if error else probe.error


def test_a_file_that_takes_too_long_is_given_up(tmp_path):
    probe = probe_file(make_image(tmp_path / "a"), timeout_s=0.001)
    assert (probe.kind, probe.error) == ("unknown", "the file takes too long to decode")


def test_the_child_can_write_no_file_and_has_little_memory(tmp_path):
    code = (
        "import sys; from wan_server.probe import limit_self; limit_self(5)\n"
        f"try:\n open({str(tmp_path / 'x')!r}, 'wb', 0).write(b'x'); sys.exit(1)\nexcept OSError:\n pass\n"
        "try:\n bytearray(4 * 1024**3); sys.exit(2)\nexcept MemoryError:\n sys.exit(0)\n"
    )
    home = str(Path(sys.modules["wan_server.probe"].__file__ or "").parents[1])
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": home}, check=False)
    assert done.returncode == 0


def children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_probe_is_cheap_and_needs_no_torch(tmp_path):
    path = make_clip(tmp_path / "a.mp4", audio=True)
    before = children_cpu_seconds()
    probe_file(path)
    assert children_cpu_seconds() - before < 0.5
    code = "import sys, wan_server.probe, wan_server.media; sys.exit('torch' in sys.modules)"
    home = str(Path(sys.modules["wan_server.probe"].__file__ or "").parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": home}, check=False).returncode == 0


def test_json_round_trip():
    probe = Probe("image", "png", 12, width=3, height=4, has_alpha=True)
    assert Probe.from_json(probe.to_json()) == probe


def test_sniff_tells_webm_from_matroska_and_mp3_from_aac():
    ebml = b"\x1aE\xdf\xa3...."
    heads = (ebml + b"webm", ebml + b"matroska", b"\xff\xfb\x90\x64", b"\xff\xf1\x50\x80")
    assert [magic and magic.format for magic in map(sniff, heads)] == ["webm", "mkv", "mp3", "aac"]
    assert sniff(b"\xff\xfe\x41\x00") is None  # text in UTF-16
