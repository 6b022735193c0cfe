"""What people send as driving audio: the model hears a moment where the video has it, whatever the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from media_samples import make_audio, read_audio
from test_s2v_speech import babble, make_model, write_wave
from wan_pipelines.audio import RATE as CARRIED_RATE
from wan_pipelines.audio import SoundReader
from wan_pipelines.mp4 import Mp4Spec, Mp4Writer
from wan_pipelines.s2v.clips import ChainSpec, make_chain
from wan_pipelines.s2v.speech import RATE, SpeechEncoder, hear, read_speech

CLICK_S = 1.25
FPS = 16
#: mp3 and AAC begin with 25 to 50 ms of nothing, which their files say are to be left out
LATE_S = 0.004

FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav at 44.1 kHz, stereo": ("wav", {"rate": 44100, "channels": 2}),
    "wav at 48 kHz, 24 bits": ("wav", {"rate": 48000, "codec": "pcm_s24le"}),
    "mp3 at 44.1 kHz, stereo": ("mp3", {"rate": 44100, "channels": 2}),
    "mp3 at 48 kHz with a cover": ("mp3", {"rate": 48000, "cover": True}),
    "m4a at 44.1 kHz, stereo": ("ipod", {"rate": 44100, "channels": 2, "codec": "aac"}),
    "ogg at 48 kHz": ("ogg", {"rate": 48000}),
    "flac at 44.1 kHz": ("flac", {"rate": 44100}),
}


def clicking(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Float32 [channels, n]: silence, but for 5 ms of 2 kHz."""
    samples = np.zeros((channels, round(seconds * rate)), np.float32)
    t = np.arange(rate // 200) / rate
    samples[:, round(CLICK_S * rate) :][:, : len(t)] = 0.8 * np.sin(2 * np.pi * 2000 * t)
    return samples


def onset_s(sound: np.ndarray, rate: int) -> float:
    """When [n] first reaches half of its loudest."""
    return int(np.argmax(np.abs(sound) > 0.5 * np.abs(sound).max())) / rate


def onsets(path: Path) -> tuple[float, float]:
    """When the click of a file comes for the model, and in the video."""
    with SoundReader(path) as reader:
        carried = np.concatenate(list(reader.blocks(2 * CARRIED_RATE)), axis=1)[0]
    return onset_s(read_speech(path, 2), RATE), onset_s(carried, CARRIED_RATE)


@pytest.mark.parametrize("name", FILES)
def test_a_moment_stays_where_it_was(tmp_path, name):
    form, how = FILES[name]
    samples = clicking(2.0, how["rate"], how.get("channels", 1))
    for found in onsets(make_audio(tmp_path / "a", format=form, samples=samples, **how)):
        assert found == pytest.approx(CLICK_S, abs=LATE_S)


def test_a_track_that_begins_late_begins_with_the_video(tmp_path):
    """What its container says of the beginning counts for neither; what the encoder put before it stays."""
    path = make_audio(
        tmp_path / "a", format="ipod", samples=clicking(2.0, 48000), rate=48000, codec="aac", begins_s=0.5
    )
    heard, carried = onsets(path)
    assert heard == pytest.approx(carried, abs=LATE_S)
    assert heard == pytest.approx(CLICK_S, abs=0.5 / FPS)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 16.5])
def test_sound_of_any_length_is_heard_and_carried_as_far_as_the_video_goes(tmp_path, seconds):
    """Of a tenth of a second, of a part of the video, and longer than any video."""
    path = write_wave(tmp_path / "a.wav", 0.1 + babble(seconds) / 2)
    chain = make_chain(ChainSpec(), 2, seed=0)
    (heard,) = hear(SpeechEncoder.of(make_model()), path, chain)
    told = heard.abs().amax(dim=(0, 1)) > 0
    shown = min(2 * FPS, max(1, int(seconds * FPS)))
    assert told[: 3 + shown].all()  # the clip begins three frames before the video
    assert not told[3 + shown + 1 :].any() or seconds > 2
    video = carry(path, tmp_path / "v.mp4")
    sound, rate = read_audio(video)
    assert abs(sound.shape[1] - 2 * rate) <= 1024
    end = round(min(seconds, 2) * rate)
    assert np.abs(sound[:, : end - 1024]).max() > 0.05
    assert np.abs(sound[:, end + 2048 :]).max(initial=0) < 0.01


def carry(sound: Path, path: Path) -> Path:
    """Two grey seconds with the sound; what was heard of it is in the facts."""
    spec = Mp4Spec(64, 64, FPS, 2 * FPS, sound=sound)
    with Mp4Writer(path, spec) as writer:
        writer.write(torch.full((2 * FPS, 3, 64, 64), 128, dtype=torch.uint8))
    assert writer.facts.seconds == 2
    assert writer.facts.audio_seconds <= 2
    return path
