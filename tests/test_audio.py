"""Sound from files: whole, cut, or followed by silence."""

from __future__ import annotations

import numpy as np
import pytest

from media_samples import make_audio, make_clip
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
