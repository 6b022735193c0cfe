"""Frames at another rate: exact counts and times, motion that is really interpolated, a clip that keeps its own."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from media_samples import make_audio, psnr, read_audio, read_video
from wan_pipelines.mp4 import FrameCountError, Mp4Spec, Mp4Writer, VideoFacts
from wan_pipelines.retime import Retiming

SPEED = 96.0  # pixels per second
RATES = [(16, 24), (16, 30), (24, 30), (24, 60), (30, 24)]


def film(fps: int, frames: int, width: int = 352, height: int = 96, *, start: int = 0) -> torch.Tensor:
    """A light disk that moves to the right over a dark pattern, float [F, 3, H, W]."""
    y, x = np.mgrid[:height, :width]
    pattern = 0.2 + 0.1 * np.sin(x / 7) * np.cos(y / 9)
    centres = [24 + SPEED * (start + frame) / fps for frame in range(frames)]
    disks = [np.clip(height / 8 - np.hypot(x - centre, y - height / 2) + 0.5, 0, 1) for centre in centres]
    pictures = np.stack([pattern * (1 - disk) + 0.9 * disk for disk in disks]).astype(np.float32)
    return torch.from_numpy(pictures)[:, None].expand(-1, 3, -1, -1)


def disk_x(picture: np.ndarray) -> float:
    """Where the disk is, in pixels."""
    weight = np.clip(picture[..., 0].astype(float) - 110, 0, None)
    return float((weight.sum(0) * np.arange(picture.shape[1])).sum() / weight.sum())


def encode(path: Path, frames: torch.Tensor, timing: Retiming, size=(352, 96), sound: Path | None = None) -> VideoFacts:
    width, height = size
    spec = Mp4Spec(width, height, timing.shown, timing.shown_frames, sound=sound, crf=1, retiming=timing)
    with Mp4Writer(path, spec) as writer:
        for piece in frames.split(4):
            writer.write(piece)
    return writer.facts


@pytest.mark.parametrize(("native", "shown"), RATES)
def test_count_times_and_length_are_exact(tmp_path, native, shown):
    path = tmp_path / "a.mp4"
    facts = encode(path, film(native, 2 * native), Retiming(native, shown, 2 * native))
    assert (facts.fps, facts.frames, facts.seconds) == (shown, 2 * shown, 2.0)
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert video.average_rate == shown
        assert (video.duration or 0) * (video.time_base or 0) == 2
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([index / shown for index in range(2 * shown)], abs=1e-3)


@pytest.mark.parametrize(("native", "shown"), RATES[:3])
def test_things_are_where_motion_brings_them(tmp_path, native, shown):
    """Repeated frames would leave the disk up to one native step behind, 6 px at 16 fps."""
    encode(tmp_path / "a.mp4", film(native, 2 * native), Retiming(native, shown, 2 * native))
    found = [disk_x(picture) for picture in read_video(tmp_path / "a.mp4")]
    last = (2 * native - 1) / native
    expected = [24 + SPEED * min(frame / shown, last) for frame in range(2 * shown)]
    assert found == pytest.approx(expected, abs=0.8)
    steps = np.diff(found[: int(last * shown)])
    assert steps.min() > 0.5 * SPEED / shown
    assert steps.max() < 1.5 * SPEED / shown


def test_frames_that_fall_on_an_output_time_are_kept(tmp_path):
    frames = film(16, 32)
    encode(tmp_path / "a.mp4", frames, Retiming(16, 24, 32))
    shown = read_video(tmp_path / "a.mp4")
    native = (frames.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    assert min(psnr(shown[3 * k], native[2 * k]) for k in range(16)) > 45


def test_the_last_frame_is_held(tmp_path):
    encode(tmp_path / "a.mp4", film(16, 32), Retiming(16, 30, 32))
    shown = read_video(tmp_path / "a.mp4")
    assert psnr(shown[-1], (film(16, 32)[-1].permute(1, 2, 0).numpy() * 255).astype(np.uint8)) > 40


def test_nothing_is_mixed_across_a_cut(tmp_path):
    frames = torch.cat([torch.full((9, 3, 96, 352), 0.1), film(16, 7) * 0.2 + 0.75])
    encode(tmp_path / "a.mp4", frames, Retiming(16, 24, 16))
    brightness = read_video(tmp_path / "a.mp4").mean((1, 2, 3))
    assert ((brightness < 40) | (brightness > 180)).all()


def test_small_frames_are_scaled_first(tmp_path):
    """Motion is known to whole pixels: of the file, not of the smaller frames."""
    facts = encode(tmp_path / "a.mp4", film(16, 16), Retiming(16, 24, 16), size=(704, 192))
    assert (facts.width, facts.height, facts.frames) == (704, 192, 24)
    found = [(disk_x(picture) + 0.5) / 2 - 0.5 for picture in read_video(tmp_path / "a.mp4")]
    assert found[:23] == pytest.approx([24 + SPEED * frame / 24 for frame in range(23)], abs=0.6)


@pytest.mark.parametrize("shown", [24, 30])
def test_sound_is_the_same_as_without(tmp_path, shown):
    sound = make_audio(tmp_path / "a.wav", 3.0, rate=44100, channels=2)
    facts = encode(tmp_path / "a.mp4", film(16, 32), Retiming(16, shown, 32), sound=sound)
    with Mp4Writer(tmp_path / "b.mp4", Mp4Spec(352, 96, 16, 32, sound=sound)) as plain:
        plain.write(film(16, 32))
    assert facts.audio_seconds == plain.facts.audio_seconds == 2.0
    assert np.array_equal(read_audio(tmp_path / "a.mp4")[0], read_audio(tmp_path / "b.mp4")[0])


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        encode(tmp_path / name, film(16, 16), Retiming(16, 30, 16))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(("native", "shown", "clip_frames"), [(16, 24, 33), (16, 30, 40), (24, 30, 49), (16, 24, 1)])
def test_a_clip_keeps_its_own_frames_and_motion_goes_on_at_the_seam(tmp_path, native, shown, clip_frames):
    timing = Retiming(native, shown, 3 * native, clip_frames)
    assert timing.kept == sum(Fraction(k, shown) < Fraction(clip_frames, native) for k in range(3 * shown))
    own = film(shown, timing.kept)
    came = film(native, 3 * native - timing.begins, start=timing.begins)
    facts = encode(tmp_path / "a.mp4", torch.cat([own, came]), timing)
    assert facts.frames == 3 * shown
    found = [disk_x(picture) for picture in read_video(tmp_path / "a.mp4")]
    expected = [24 + SPEED * min(k / shown, (3 * native - 1) / native) for k in range(3 * shown)]
    assert found[: timing.kept] == pytest.approx(expected[: timing.kept], abs=0.1)
    assert found == pytest.approx(expected, abs=0.8)
    assert max(b - a for a, b in pairwise(found)) < 1.6 * SPEED / shown


def test_another_number_of_frames_is_an_error_that_leaves_nothing(tmp_path):
    timing = Retiming(16, 24, 16)
    with pytest.raises(FrameCountError, match="15 frames came, 16 were announced"):
        encode(tmp_path / "a.mp4", film(16, 15), timing)
    with pytest.raises(FrameCountError, match="17 frames came, 16 were announced"):
        encode(tmp_path / "a.mp4", film(16, 17), timing)
    assert list(tmp_path.iterdir()) == []


def test_a_spec_must_fit_its_retiming():
    with pytest.raises(ValueError, match="must be those that the retiming gives"):
        Mp4Spec(352, 96, 24, 25, retiming=Retiming(16, 24, 16))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_memory_does_not_follow_the_number_of_frames(tmp_path):
    chunk, chunks = film(16, 8, 320, 192), 16
    timing = Retiming(16, 24, 8 * chunks)
    early = 0
    spec = Mp4Spec(320, 192, 24, timing.shown_frames, preset="ultrafast", crf=40, retiming=timing)
    with Mp4Writer(tmp_path / "a.mp4", spec) as writer:
        for index in range(chunks):
            writer.write(chunk)
            early = resident_bytes() if index <= 5 else early
        grown = resident_bytes() - early
    raw = (chunks - 6) * 12 * 320 * 192 * 3 // 2
    assert raw > 10e6
    assert grown < 5e6
