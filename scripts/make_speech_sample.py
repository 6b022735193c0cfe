"""Draws `configs/samples/speech.wav`: five seconds that sound like speech, with nobody's voice in them.

Pulses of a falling pitch ring through the formants of five vowels, hisses and pops stand for consonants, and there are
pauses between the words. The same samples on every machine, up to rounding.
"""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np

RATE = 16_000
SECONDS = 5
PEAK = 0.7
OUT = Path(__file__).resolve().parents[1] / "configs" / "samples" / "speech.wav"

#: first three formants in Hz (Peterson and Barney, 1952, rounded) and how strongly each rings
FORMANTS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
GAINS = (1.0, 0.5, 0.2)
BANDWIDTHS = (80, 100, 140)
RING_S = 0.04

#: words of syllables: a consonant ("s" hisses, "t" pops, "m" hums), a vowel, and its length in seconds
WORDS = (
    (("m", "a", 0.22), ("t", "i", 0.16), ("s", "o", 0.26)),
    (("t", "u", 0.18), ("m", "e", 0.24)),
    (("s", "a", 0.30), ("t", "a", 0.14), ("m", "i", 0.16), ("t", "o", 0.32)),
    (("s", "e", 0.20), ("m", "u", 0.36)),
)
#: silence before each word, in seconds; what is left of the five is silent too
PAUSES = (0.15, 0.22, 0.55, 0.25)
HISS_S, POP_S, HUM_S = 0.09, 0.03, 0.07
HIGHEST_HZ, LOWEST_HZ = 150, 95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", default=OUT)
    path = parser.parse_args().path
    write(path, speech())
    print(f"{path}: {path.stat().st_size} bytes")


def speech() -> np.ndarray:
    """int16 [SECONDS * RATE]."""
    noise = np.random.RandomState(5)  # its stream never changes, which newer generators do not promise
    parts = []
    for pause, word in zip(PAUSES, WORDS, strict=True):
        parts.append(np.zeros(round(pause * RATE)))
        pitches = np.linspace(HIGHEST_HZ, LOWEST_HZ, len(word) + 1)
        for (consonant, vowel, seconds), high, low in zip(word, pitches, pitches[1:], strict=False):
            parts += [_consonant(consonant, high, noise), _voiced(FORMANTS[vowel], seconds, high, low)]
    spoken = np.concatenate(parts)
    samples = np.zeros(SECONDS * RATE)
    samples[: len(spoken)] = spoken
    return np.rint(samples / np.abs(samples).max() * PEAK * 32767).astype("<i2")


def write(path: Path, samples: np.ndarray) -> None:
    """16 bits, mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def _voiced(formants: tuple[int, ...], seconds: float, high: float, low: float) -> np.ndarray:
    """Pulses whose pitch falls from `high` to `low` Hz, each ringing at the formants."""
    count = round(seconds * RATE)
    turns = np.cumsum(np.linspace(high, low, count)) / RATE
    pulses = np.diff(np.floor(turns), prepend=-1.0)
    return np.convolve(pulses, _ring(formants))[:count] * _swell(count)


def _ring(formants: tuple[int, ...]) -> np.ndarray:
    t = np.arange(round(RING_S * RATE)) / RATE
    waves = [
        gain * np.exp(-np.pi * width * t) * np.sin(2 * np.pi * hertz * t)
        for hertz, gain, width in zip(formants, GAINS, BANDWIDTHS, strict=True)
    ]
    return np.sum(waves, axis=0)


def _consonant(name: str, pitch: float, noise: np.random.RandomState) -> np.ndarray:
    if name == "m":
        return 0.4 * _voiced((250, 1000, 2200), HUM_S, pitch, pitch)
    count = round((HISS_S if name == "s" else POP_S) * RATE)
    hiss = np.diff(noise.standard_normal(count + 1))  # the difference leaves the high half
    return 0.15 * hiss * (_swell(count) if name == "s" else np.linspace(1, 0, count))


def _swell(count: int) -> np.ndarray:
    """Rises within 30 ms and falls within 50."""
    rise, fall = np.arange(count) / (0.03 * RATE), np.arange(count)[::-1] / (0.05 * RATE)
    return np.minimum(1, np.minimum(rise, fall))


if __name__ == "__main__":
    main()
