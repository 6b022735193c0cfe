"""Frames and sound to MP4: exact size, count, length and colour, and no remains after an error."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Colorspace

from media_samples import make_audio, psnr, read_audio, read_video, smooth_rgb
from wan_pipelines.audio import SoundError
from wan_pipelines.mp4 import FrameCountError, Mp4Spec, Mp4Writer


def film(frames: int, width: int, height: int) -> torch.Tensor:
    """Smooth moving colours, uint8 [F, 3, H, W]."""
    pictures = [smooth_rgb(width, height, index / 50) for index in range(frames)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def encode(path: Path, frames: torch.Tensor, spec: Mp4Spec, chunk: int = 4) -> Mp4Writer:
    with Mp4Writer(path, spec) as writer:
        for piece in frames.split(chunk):
            writer.write(piece)
    return writer


def as_pictures(frames: torch.Tensor) -> np.ndarray:
    return frames.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("fps", [16, 24, 30, 30000 / 1001])
def test_size_count_rate_and_length_are_exact(tmp_path, fps):
    path = tmp_path / "a.mp4"
    facts = encode(path, film(21, 96, 64), Mp4Spec(96, 64, fps, 21)).facts
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert (video.width, video.height, video.frames) == (96, 64, 21)
        assert float(video.average_rate or 0) == pytest.approx(fps, rel=1e-6)
        assert float((video.duration or 0) * (video.time_base or 0)) == pytest.approx(21 / fps, abs=1e-3)
        assert (container.duration or 0) / 1e6 == pytest.approx(21 / fps, abs=2e-3)
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([index / fps for index in range(21)], abs=1e-3)
    assert (facts.width, facts.height, facts.frames, facts.fps) == (96, 64, 21, fps)
    assert facts.seconds == pytest.approx(21 / fps, rel=1e-6)
    assert facts.size == path.stat().st_size
    assert not facts.has_audio


def test_colours_are_bt709_and_say_so(tmp_path):
    path, frames = tmp_path / "a.mp4", film(6, 192, 128)
    encode(path, frames, Mp4Spec(192, 128, 16, 6))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        assert tags == (1, 1, 1, 1)
        assert (context.pix_fmt, context.name) == ("yuv420p", "h264")
        decoded = list(container.decode(video=0))
    right = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    wrong = np.stack([frame.to_ndarray(format="rgb24", src_colorspace=Colorspace.ITU601) for frame in decoded])
    assert psnr(right, as_pictures(frames)) >= 40
    assert psnr(wrong, as_pictures(frames)) < 35


def test_the_colr_atom_and_the_index_come_first(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, film(4, 96, 64), Mp4Spec(96, 64, 16, 4))
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    assert b"colrnclx\x00\x01\x00\x01\x00\x01" in data


def test_the_same_frames_give_the_same_bytes_as_float_or_uint8(tmp_path):
    frames, files = film(3, 96, 64), set()
    for turn in range(8):
        junk = torch.rand(1000 * (turn + 1))  # another layout of the memory
        encode(tmp_path / "a.mp4", frames if turn % 2 else frames.float() / 255, Mp4Spec(96, 64, 16, 3))
        files.add((tmp_path / "a.mp4").read_bytes())
        del junk
    assert len(files) == 1


@pytest.mark.parametrize("size", [(320, 192), (128, 96)])
def test_frames_of_another_size_are_scaled_in_the_right_colours(tmp_path, size):
    path = tmp_path / "a.mp4"
    encode(path, film(5, 160, 96), Mp4Spec(size[0], size[1], 16, 5))
    assert psnr(read_video(path), as_pictures(film(5, *size))) >= 36


def test_sound_is_cut_to_the_video(tmp_path):
    sound, path = make_audio(tmp_path / "a.wav", 3.0, rate=44100, channels=2), tmp_path / "a.mp4"
    facts = encode(path, film(20, 96, 64), Mp4Spec(96, 64, 20, 20, sound=sound)).facts
    samples, rate = read_audio(path)
    assert (rate, samples.shape[0]) == (48000, 2)
    assert samples.shape[1] == pytest.approx(48000, abs=1024)
    assert np.abs(samples[:, 40_000:47_000]).max() == pytest.approx(0.5, abs=0.05)
    assert facts.has_audio
    assert facts.audio_seconds == pytest.approx(1.0)
    assert container_seconds(path) == pytest.approx(1.0, abs=0.03)


def test_short_sound_is_followed_by_silence_to_the_end(tmp_path):
    sound, path = make_audio(tmp_path / "a.mp3", 0.5, "mp3", rate=44100), tmp_path / "a.mp4"
    facts = encode(path, film(40, 96, 64), Mp4Spec(96, 64, 20, 40, sound=sound)).facts
    samples, _ = read_audio(path)
    assert samples.shape[0] == 1
    assert samples.shape[1] == pytest.approx(96_000, abs=1024)
    assert np.abs(samples[:, 5_000:20_000]).max() > 0.4
    assert np.abs(samples[:, 40_000:]).max() < 0.01
    assert facts.audio_seconds == pytest.approx(0.5, abs=0.08)
    assert container_seconds(path) == pytest.approx(2.0, abs=0.03)


def container_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / 1e6


def test_sound_and_pictures_are_interleaved(tmp_path):
    sound, path = make_audio(tmp_path / "a.wav", 6.0), tmp_path / "a.mp4"
    noise = torch.randint(0, 256, (48, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encode(path, noise, Mp4Spec(64, 48, 8, 48, sound=sound))
    with av.open(str(path)) as container:
        packets = [
            (packet.pos or 0, packet.stream.type, float((packet.dts or 0) * (packet.time_base or 0)))
            for packet in container.demux()
            if packet.size
        ]
    last = {"video": 0.0, "audio": 0.0}
    for _, kind, time in sorted(packets):
        last[kind] = time
        assert abs(last["video"] - last["audio"]) < 1.5


def test_watermark_marks_the_corner_only(tmp_path):
    frames, spec = film(3, 640, 360), Mp4Spec(640, 360, 16, 3)
    encode(tmp_path / "plain.mp4", frames, spec)
    encode(tmp_path / "marked.mp4", frames, Mp4Spec(640, 360, 16, 3, watermark=True))
    plain, marked = read_video(tmp_path / "plain.mp4"), read_video(tmp_path / "marked.mp4")
    difference = np.abs(plain.astype(int) - marked.astype(int)).max(axis=(0, 3))
    assert difference[-40:, -150:].max() > 80
    assert difference[:300].max() < 30
    assert difference[:, :450].max() < 30


def test_too_many_frames_raise_and_leave_nothing(tmp_path):
    with pytest.raises(FrameCountError, match="6 frames came, 5 were announced"):
        encode(tmp_path / "a.mp4", film(6, 96, 64), Mp4Spec(96, 64, 16, 5), chunk=3)
    assert list(tmp_path.iterdir()) == []


def test_too_few_frames_raise_and_leave_nothing(tmp_path):
    with pytest.raises(FrameCountError, match="4 frames came, 5 were announced"):
        encode(tmp_path / "a.mp4", film(4, 96, 64), Mp4Spec(96, 64, 16, 5))
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_passes_through_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    writer = Mp4Writer(path, Mp4Spec(96, 64, 16, 5))
    with pytest.raises(KeyboardInterrupt):
        stop_after_two_frames(writer)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError, match="not finished"):
        _ = writer.facts


def stop_after_two_frames(writer: Mp4Writer) -> None:
    with writer:
        writer.write(film(2, 96, 64))
        raise KeyboardInterrupt


def test_sound_that_cannot_be_read_stops_before_the_first_frame(tmp_path):
    sound = tmp_path / "a.wav"
    sound.write_text("no sound")
    with pytest.raises(SoundError), Mp4Writer(tmp_path / "a.mp4", Mp4Spec(96, 64, 16, 5, sound=sound)):
        pytest.fail("must not begin")
    assert list(tmp_path.iterdir()) == [sound]


@pytest.mark.parametrize(("width", "height", "fps", "frames"), [(95, 64, 16, 5), (96, 63, 16, 5), (96, 64, 0, 5)])
def test_impossible_specs_are_refused(width, height, fps, frames):
    with pytest.raises(ValueError, match=r"even sides|positive"):
        Mp4Spec(width, height, fps, frames)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_memory_does_not_follow_the_number_of_frames(tmp_path):
    count, chunk = 200, 8
    noise = torch.randint(0, 256, (chunk, 3, 96, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = Mp4Spec(480, 288, 30, count, sound=make_audio(tmp_path / "a.wav", 12.0), preset="ultrafast", crf=40)
    early = 0
    with Mp4Writer(tmp_path / "a.mp4", spec) as writer:
        for index in range(count // chunk):
            writer.write(noise.roll(index, dims=-1))
            early = resident_bytes() if index <= 10 else early
        grown = resident_bytes() - early
    raw = (count - 10 * chunk) * 480 * 288 * 3 // 2
    assert raw > 24e6
    assert grown < 8e6
