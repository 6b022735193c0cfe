"""Sound from files: whole, cut, or followed by silence."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from media_samples import make_audio, make_clip, tone
from wan_pipelines.audio import BLOCK, RATE, SoundError, SoundReader, sound_seconds


def collect(path, samples: int) -> tuple[np.ndarray, int]:
    with SoundReader(path) as reader:
        blocks = list(reader.blocks(samples))
        assert all(block.shape[1] == BLOCK for block in blocks[:-1])
        return np.concatenate(blocks, axis=1), reader.heard


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("wav", {"rate": 44100}),
        ("wav", {"rate": 8000, "codec": "pcm_mulaw"}),
        ("wav", {"rate": 48000, "codec": "pcm_s24le", "channels": 2}),
        ("mp3", {"rate": 44100, "channels": 2, "cover": True}),
        ("ogg", {"rate": 48000}),
        ("flac", {"rate": 22050}),
    ],
)
def test_any_sound_comes_at_48_khz(tmp_path, name, kwargs):
    path = make_audio(tmp_path / "a", 1.0, name, **kwargs)
    assert sound_seconds(path) == pytest.approx(1.0, abs=0.06)
    sound, _ = collect(path, RATE // 2)
    assert sound.shape == (kwargs.get("channels", 1), RATE // 2)
    steady = sound[0, RATE // 8 :]
    crossings = np.count_nonzero(np.diff(np.signbit(steady))) / 2 / (len(steady) / RATE)
    assert crossings == pytest.approx(440, abs=4)
    assert np.abs(steady).max() == pytest.approx(0.5, abs=0.05)


def test_long_sound_is_cut(tmp_path):
    sound, heard = collect(make_audio(tmp_path / "a", 2.0), 30_000)
    assert sound.shape[1] == heard == 30_000
    assert np.abs(sound[:, -1000:]).max() > 0.4


def test_short_sound_ends_in_silence(tmp_path):
    sound, heard = collect(make_audio(tmp_path / "a", 0.5, rate=RATE), 60_001)
    assert sound.shape[1] == 60_001
    assert heard == 24_000
    assert np.abs(sound[:, 23_000:24_000]).max() > 0.4
    assert np.abs(sound[:, 24_000:]).max() == 0


def test_sound_of_a_clip_is_read(tmp_path):
    sound, heard = collect(make_clip(tmp_path / "a.mp4", (64, 64), 1, 10, audio=True), 4800)
    assert heard == 4800
    assert sound.shape == (2, 4800)


def clip_of(path: Path, picture_s: float, sound_s: float) -> Path:
    """A clip of half a second whose picture and tone (a quarter of a second) begin at these times."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        sound: Any = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for index in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = round((picture_s + index / 10) * 1000), Fraction(1, 1000)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        samples = (20_000 * tone(0.25, RATE)).astype(np.int16)
        heard = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        heard.sample_rate, heard.pts, heard.time_base = RATE, round(sound_s * RATE), Fraction(1, RATE)
        container.mux(sound.encode(heard))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize(("picture_s", "sound_s"), [(0, 0), (0, 0.2), (0.3, 0.5), (0.3, 0.3), (0.2, 0.1), (0, 30)])
def test_sound_of_a_clip_stays_where_it_is_beside_the_picture(tmp_path, picture_s, sound_s):
    """Within two thousandths of a second, to which the container rounds; what is half a minute away is not believed."""
    samples, _ = collect(clip_of(tmp_path / "a.mkv", picture_s, sound_s), RATE)
    heard = np.flatnonzero(np.abs(samples[0]) > 0.02)
    apart = sound_s - picture_s if sound_s < 10 else 0.0
    assert heard[0] / RATE == pytest.approx(max(0.0, apart), abs=0.002)
    assert heard[-1] / RATE == pytest.approx(apart + 0.25, abs=0.002)


def test_a_broken_packet_does_not_end_the_sound(tmp_path):
    path = make_audio(tmp_path / "a", 2.0, "mp3", rate=44100)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    assert sound_seconds(path) == pytest.approx(2.0, abs=0.2)


def test_files_without_sound_are_refused(tmp_path):
    with pytest.raises(SoundError, match="no sound"):
        SoundReader(make_clip(tmp_path / "a.mp4", (64, 64), 1, 10))
    (tmp_path / "text.wav").write_text("no sound at all")
    with pytest.raises(SoundError, match="cannot be read"):
        SoundReader(tmp_path / "text.wav")


def test_playlists_are_not_followed(tmp_path):
    make_audio(tmp_path / "a.mp3", 1.0, "mp3", rate=44100)
    playlist = tmp_path / "list.wav"
    playlist.write_text("ffconcat version 1.0\nfile a.mp3\n")
    with pytest.raises(SoundError, match="cannot be read"):
        SoundReader(playlist)
