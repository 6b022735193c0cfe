"""Sounds with the rhythm of speech, and how loud they are: words of ringing vowels and hisses, notes, clicks, pauses.

Nobody's voice and no recording. Everything is a function of a `random.Random`.
"""

from __future__ import annotations

from random import Random

import numpy as np

from tinywan.s2v_recipe import Voice
from wan_pipelines.s2v.speech import RATE, normalised

#: first three formants of vowels in Hz (Peterson and Barney, 1952, rounded), their gains and bandwidths
FORMANTS = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
GAINS = (1.0, 0.5, 0.2)
BANDWIDTHS = (80, 100, 140)
RING_S = 0.02
#: loudness is told a hundred times a second
LOUDNESS_RATE = 100


def draw_sound(voice: Voice, rng: Random, seconds: float) -> np.ndarray:
    """Mono sound at 16 kHz, float32 [n], of any loudness, over a floor of noise."""
    noise = np.random.default_rng(rng.getrandbits(62))
    count = round(seconds * RATE)
    kind = rng.choices(list(voice.kinds), list(voice.kinds.values()))[0]
    sound, at = np.zeros(count), rng.uniform(0, voice.pause[1])
    tract, pitch = rng.uniform(0.85, 1.2), rng.uniform(*voice.pitch)
    while at < seconds:
        for _ in range(rng.randint(1, voice.longest_word)):
            piece = _piece(kind, voice, rng, noise, (tract, pitch)) * rng.uniform(0.35, 1.0)
            begin = round(at * RATE)
            piece = piece[: max(0, count - begin)]
            sound[begin : begin + len(piece)] += piece
            at += len(piece) / RATE + rng.uniform(0.0, voice.gap)
            if not len(piece):
                break
        at += rng.uniform(*voice.pause)
    loudest = max(float(np.abs(sound).max()), 1e-6)
    floor = 10 ** rng.uniform(*voice.floor) * noise.standard_normal(count)
    return ((sound / loudest + floor) * rng.uniform(*voice.gain)).astype(np.float32)


def loudness(samples: np.ndarray, smooth_s: float) -> np.ndarray:
    """How loud a sound is against its own mean power, [n] a hundred times a second.

    Root mean square of 10 ms, under a bell of standard deviation `smooth_s`.
    """
    step = RATE // LOUDNESS_RATE
    power = np.square(normalised(samples))
    windows = np.sqrt(np.pad(power, (0, -len(power) % step)).reshape(-1, step).mean(axis=1))
    reach = round(4 * smooth_s * LOUDNESS_RATE)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (smooth_s * LOUDNESS_RATE)) ** 2)
    return np.convolve(windows, bell / bell.sum())[reach : reach + len(windows)]


def openings(samples: np.ndarray, times: np.ndarray, voice: Voice) -> np.ndarray:
    """How far a mouth is open to a sound at some times in seconds: float32 in [0, 1), 0 behind the sound's end."""
    loud = loudness(samples, voice.smooth_s)
    middles = (np.arange(len(loud)) + 0.5) / LOUDNESS_RATE
    found = np.interp(times, middles, loud, right=0.0)
    return (1 - np.exp(-found / voice.half_open)).astype(np.float32)


def _piece(
    kind: str, voice: Voice, rng: Random, noise: np.random.Generator, speaker: tuple[float, float]
) -> np.ndarray:
    """One syllable, note or click."""
    tract, pitch = speaker
    seconds = rng.uniform(*voice.syllable)
    if kind == "clicks":
        return noise.standard_normal(round(rng.uniform(*voice.click) * RATE))
    if kind == "notes":
        return _note(rng, seconds)
    if rng.random() < voice.hiss:
        hiss = 0.4 * np.diff(noise.standard_normal(round(0.5 * seconds * RATE) + 1))
        return hiss * _swell(len(hiss))
    formants = tuple(tract * hertz for hertz in rng.choice(FORMANTS))
    return _voiced(formants, seconds, pitch * rng.uniform(0.9, 1.15), pitch * rng.uniform(0.75, 1.0))


def _voiced(formants: tuple[float, ...], seconds: float, high: float, low: float) -> np.ndarray:
    """Pulses whose pitch glides from `high` to `low` Hz, each ringing at the formants."""
    count = round(seconds * RATE)
    pulses = np.diff(np.floor(np.cumsum(np.linspace(high, low, count)) / RATE), prepend=0.0)
    t = np.arange(round(RING_S * RATE)) / RATE
    rings = zip(formants, GAINS, BANDWIDTHS, strict=True)
    waves = [gain * np.exp(-np.pi * width * t) * np.sin(2 * np.pi * hertz * t) for hertz, gain, width in rings]
    return np.convolve(pulses, np.sum(waves, axis=0))[:count] * _swell(count)


def _note(rng: Random, seconds: float) -> np.ndarray:
    """A tone with overtones."""
    count = round(2 * seconds * RATE)
    turns = 2 * np.pi * rng.uniform(110, 880) * np.arange(count) / RATE
    overtones = [np.sin(n * turns) / n for n in range(1, rng.randint(2, 5))]
    return np.sum(overtones, axis=0) * _swell(count)


def _swell(count: int) -> np.ndarray:
    """Rises within 30 ms and falls within 50."""
    rise, fall = np.arange(count) / (0.03 * RATE), np.arange(count)[::-1] / (0.05 * RATE)
    return np.minimum(1, np.minimum(rise, fall))
