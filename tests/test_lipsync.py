"""A drawn face and a sound through the pipeline with the shipped weights: the mouth must open when it is loud.

Sound that does not reach the model, arrives late, or belongs to another clip makes one of these tests fail.
"""

from __future__ import annotations

import wave
from dataclasses import replace

import numpy as np
import pytest

from server_process import ROOT
from tiny_checkpoint import CONFIGS
from tinywan import lipsync
from tinywan.lipsync import Act, Theatre, Troupe, correlation
from tinywan.recipe import load_recipe
from tinywan.s2v_recipe import load_sister_recipe
from wan_pipelines.s2v.speech import RATE


@pytest.fixture(scope="module")
def theatre() -> Theatre:
    return Theatre.open(CONFIGS)


@pytest.fixture(scope="module")
def troupe() -> Troupe:
    """Drawn canvases only: the photographs are not in the repository."""
    scenes = load_recipe(CONFIGS / "training" / "wan-tiny.toml")
    sister = load_sister_recipe(CONFIGS / "training" / "wan-tiny-s2v.toml")
    faces = replace(sister, cast=replace(sister.cast, kinds={"face": 1.0}))
    return Troupe(faces, replace(scenes, data=replace(scenes.data, drawn=1.0)), [])


def speech() -> np.ndarray:
    with wave.open(str(ROOT / "configs" / "samples" / "speech.wav")) as file:
        return np.frombuffer(file.readframes(-1), "<i2").astype(np.float32) / 32768


def speaking(troupe: Troupe, number: int, samples: np.ndarray, seconds: int) -> Act:
    return replace(troupe.act(2 * number), samples=samples, seconds=seconds)


def test_the_mouth_opens_to_the_bundled_speech(theatre, troupe):
    played = theatre.play(speaking(troupe, 1, speech(), 5))
    assert played.follows > 0.7
    assert abs(correlation(played.opened, played.heard[::-1])) < 0.5
    assert abs(lipsync.lag(played.heard, played.opened, most=8)) <= 1
    assert played.held > 18


def test_half_a_second_later_is_eight_frames_later(theatre, troupe):
    (found,) = lipsync.delayed(theatre, [theatre.play(speaking(troupe, 2, speech()[: 3 * RATE], 3))])
    assert abs(found - 8) <= 1


def test_the_mouth_rests_behind_the_end_of_the_sound(theatre, troupe):
    played = theatre.play(speaking(troupe, 1, speech()[RATE : 5 * RATE // 2], 4))
    speaks = played.heard > 0.5 * played.heard.max()
    assert played.opened[28:].mean() < 0.5 * played.opened[speaks].mean()


@pytest.mark.slow
def test_the_second_clip_of_a_chain_follows_as_well(theatre, troupe):
    played = theatre.play(speaking(troupe, 4, np.tile(speech(), 2), 9))
    assert correlation(played.opened[81:], played.heard[81:]) > 0.7
    assert correlation(played.opened[:81], played.heard[:81]) > 0.7
    assert played.drift() < 0.05
