"""Speech features: the numbers of the reference path, from any file, in place, kept between runs."""

from __future__ import annotations

import math
import os
import struct
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

import make_speech_sample
from media_samples import make_audio, make_clip, tone
from wan_pipelines.audio import SoundError
from wan_pipelines.s2v.clips import HEARD_RATE, ChainSpec, make_chain
from wan_pipelines.s2v.speech import (
    RATE,
    FeatureCache,
    SpeechEncoder,
    fingerprint,
    hear,
    heard_by_frames,
    normalised,
    read_speech,
    speech_states,
)

SAMPLE = Path(__file__).resolve().parents[1] / "configs" / "samples" / "speech.wav"
#: sound bucket k belongs to sampled frame k, as in the official loop
OFFICIAL = ChainSpec(least_frames=80, first_clip_extra=0, lead_frames=0)
LAYERS, WIDTH = 3, 32


def make_model(seed: int = 0, *, stable: bool = True) -> Wav2Vec2Model:
    """A small wav2vec 2.0 with random weights; `stable` as in the large one, with a norm at the end."""
    config = Wav2Vec2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    return Wav2Vec2Model(config).eval()


@pytest.fixture(scope="module")
def model() -> Wav2Vec2Model:
    return make_model()


def write_wave(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """16 bits; samples are float in [-1, 1], [n] or [channels, n]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(samples.T * 32767).astype("<i2").tobytes())
    return path


def write_float_wave(path: Path, samples: np.ndarray) -> Path:
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<IHHIIHH", 16, 3, 1, RATE, 4 * RATE, 4, 32)
    size = struct.pack("<I", 28 + len(form) + len(data))
    path.write_bytes(b"RIFF" + size + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data)
    return path


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades, [n] at 16 kHz."""
    count = round(seconds * RATE)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, count)
    return noise * np.sin(np.arange(count) / RATE * 7) ** 2


@torch.no_grad()
def reference_states(model: Wav2Vec2Model, samples: np.ndarray) -> torch.Tensor:
    """The hidden states as transformers 4.51 lists them, part by part: before each layer, and the model's output."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    hidden, _ = model.feature_projection(
        model.feature_extractor(extractor(samples, sampling_rate=RATE, return_tensors="pt").input_values).mT
    )
    hidden = hidden + model.encoder.pos_conv_embed(hidden)
    stable = model.config.do_stable_layer_norm
    hidden = hidden if stable else model.encoder.layer_norm(hidden)
    states = [hidden]
    for layer in model.encoder.layers:
        states.append(layer(states[-1]))
    return torch.cat([*states[:-1], model.encoder.layer_norm(states[-1]) if stable else states[-1]])


def reference_buckets(states: torch.Tensor) -> torch.Tensor:
    """[layers + 1, n, width] at 50 Hz to [layers + 1, width, 80 * clips], as the official code sorts them."""
    length = int(states.shape[1] / 50.0 * 30)
    features = torch.nn.functional.interpolate(states.mT, size=length, mode="linear", align_corners=True)
    frames = 80 * (int(length / 150) + 1)
    out = torch.zeros(*features.shape[:2], frames)
    for frame, state in enumerate(np.round(np.arange(frames) / 16 * 30).astype(int)):
        if state < length:
            out[..., frame] = features[..., state]
    return out


@pytest.mark.parametrize("stable", [True, False])
def test_states_of_all_layers_equal_the_reference(stable):
    model = make_model(1, stable=stable)
    samples = babble(1.5).astype(np.float32)
    states = speech_states(model, samples)
    assert states.shape == (LAYERS + 1, 74, WIDTH)
    assert torch.allclose(states, reference_states(model, samples), atol=1e-5, rtol=0)
    assert min(float((a - b).abs().max()) for a, b in pairwise(states)) > 0.1


@pytest.mark.parametrize("seconds", [2.00, 4.99, 5.00, 5.01, 14.9])
def test_what_clips_hear_equals_the_reference(tmp_path, model, seconds):
    path = write_wave(tmp_path / "a.wav", babble(seconds))
    chain = make_chain(OFFICIAL, math.ceil(seconds), seed=0)
    heard = torch.cat(hear(SpeechEncoder.of(model), path, chain), dim=2)
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(-1), "<i2").astype(np.float32) / 32768
    expected = reference_buckets(reference_states(model, samples))
    assert heard.shape == expected.shape
    assert torch.allclose(heard, expected, atol=1e-5, rtol=0)
    beyond = heard[..., math.ceil(seconds * 16) :]
    assert not beyond.any()
    assert heard[..., : int(seconds * 16 - 1)].abs().amax((0, 1)).min() > 0


@pytest.mark.parametrize("seconds", range(2, 16))
def test_shown_frames_hear_to_the_end(model, seconds):
    """A sound as long as the video: no clip of silence follows it, and no shown frame is without sound."""
    chain = make_chain(ChainSpec(), seconds, seed=0)
    features = torch.ones(LAYERS + 1, int((seconds * 50 - 1) / 50 * 30), WIDTH)
    for clip in chain.clips:
        assert heard_by_frames(features, chain.heard(clip))[..., clip.shown].all()


@pytest.mark.parametrize("number", [0, 17, 31, 80, 81, 100, 160, 161, 239])
def test_a_shown_frame_hears_the_sound_of_its_own_time(tmp_path, model, number):
    """Other noise when one frame comes on show, found again in what the frames hear: the offset is 0 frames."""
    chain = make_chain(ChainSpec(), 15, seed=0)
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 16 * RATE)
    other = sound.copy()
    other[number * 1000 : number * 1000 + 400] *= -1
    encoder = SpeechEncoder.of(model)
    both = [hear(encoder, write_wave(tmp_path / "a.wav", samples), chain) for samples in (sound, other)]
    shown = [torch.cat([x[..., c.shown] for x, c in zip(h, chain.clips, strict=True)], dim=2)[0] for h in both]
    assert int((shown[0] - shown[1]).abs().sum(0).argmax()) == number


def test_spoiled_frames_hear_the_beginning_held(tmp_path, model):
    chain = make_chain(ChainSpec(), 2, seed=0)
    (heard,) = hear(SpeechEncoder.of(model), write_wave(tmp_path / "a.wav", babble(3)), chain)
    assert heard.shape == (LAYERS + 1, WIDTH, 48)
    assert all(torch.equal(heard[..., frame], heard[..., 3]) for frame in range(3))
    assert not torch.equal(heard[..., 3], heard[..., 4])


def test_silence_is_heard_as_numbers(tmp_path, model):
    chain = make_chain(ChainSpec(), 2, seed=0)
    (heard,) = hear(SpeechEncoder.of(model), write_wave(tmp_path / "a.wav", np.zeros(3 * RATE)), chain)
    assert heard.isfinite().all()
    assert float((heard[..., 5] - heard[..., 25]).abs().max()) < 1e-4


def test_loudness_does_not_matter():
    sound = babble(1)
    assert np.allclose(normalised(sound), normalised(0.1 * sound), atol=1e-3)
    assert normalised(sound).std() == pytest.approx(1, abs=1e-5)
    assert np.isfinite(normalised(np.array([9e8, -9e8] * 50, np.float32))).all()


def test_mono_at_16_khz_is_read_as_it_is(tmp_path):
    sound = babble(1)
    samples = read_speech(write_wave(tmp_path / "a.wav", sound), 2)
    assert samples.dtype == np.float32
    assert np.array_equal(samples, np.rint(sound * 32767).astype(np.float32) / 32768)
    assert np.array_equal(read_speech(tmp_path / "a.wav", 0.25), samples[:4000])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("wav", {"rate": 44100, "channels": 2}),
        ("wav", {"rate": 8000, "codec": "pcm_mulaw"}),
        ("wav", {"rate": 96000, "codec": "pcm_s24le", "channels": 2}),
        ("wav", {"rate": 11025, "codec": "pcm_u8"}),
        ("wav", {"rate": 48000, "codec": "pcm_f64le"}),
        ("mp3", {"rate": 44100, "channels": 2, "cover": True}),
        ("mp3", {"rate": 16000}),
        ("ogg", {"rate": 48000}),
        ("flac", {"rate": 22050}),
        ("mp4", {"rate": 44100}),
    ],
)
def test_any_sound_comes_as_mono_at_16_khz(tmp_path, name, kwargs):
    path = make_audio(tmp_path / "a", 1.0, name, **kwargs)
    samples = read_speech(path, 5)
    assert len(samples) / RATE == pytest.approx(1.0, abs=0.08)
    steady = samples[RATE // 4 : 3 * RATE // 4]
    assert np.count_nonzero(np.diff(np.signbit(steady))) == pytest.approx(440, abs=2)
    assert 0.45 < np.abs(steady).max() < 0.75  # two equal channels add up to more than one
    assert len(read_speech(path, 0.5)) == RATE // 2


@pytest.mark.parametrize("channels", [2, 3, 6, 8])
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_moments_stay_in_place(tmp_path, rate, channels):
    sound = np.zeros((channels, 2 * rate))
    sound[:, round(1.25 * rate)] = 0.9
    samples = read_speech(write_wave(tmp_path / "a.wav", sound, rate), 5)
    assert abs(int(np.abs(samples).argmax()) - 1.25 * RATE) <= 2
    assert len(samples) == pytest.approx(2 * RATE, abs=32)


def test_the_sound_of_a_clip_is_read(tmp_path):
    samples = read_speech(make_clip(tmp_path / "a.mp4", (64, 64), 1, 10, audio=True), 5)
    assert np.abs(samples[2000:-2000]).max() > 0.4


def test_a_track_may_change_on_its_way(tmp_path):
    first = make_audio(tmp_path / "a.mp3", 1.0, "mp3", rate=44100, channels=2)
    second = make_audio(tmp_path / "b.mp3", 1.0, "mp3", rate=22050)
    (tmp_path / "ab.mp3").write_bytes(first.read_bytes() + second.read_bytes())
    samples = read_speech(tmp_path / "ab.mp3", 5)
    assert len(samples) / RATE == pytest.approx(2, abs=0.2)
    for half in (samples[4000:12000], samples[-12000:-4000]):
        assert np.count_nonzero(np.diff(np.signbit(half))) == pytest.approx(440, abs=4)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("no sound at all"), "cannot be read"),
        (lambda path: make_clip(path, (64, 64), 1, 10, format="mp4"), "has no sound"),
        (lambda path: write_wave(path, tone(0.05, RATE)[0]), r"at least 0.1 s of sound \(got 0.050\)"),
        (lambda path: path.write_bytes(make_audio(path).read_bytes()[:44]), "cannot be read"),
        (lambda path: write_float_wave(path, np.full(RATE, 3e38)), "beyond any loudness"),
        (lambda path: write_float_wave(path, np.full(RATE, np.nan)), "no numbers"),
        (lambda path: write_float_wave(path, np.full(RATE, np.inf)), "no numbers"),
    ],
)
def test_damaged_files_are_refused_by_the_name_of_the_field(tmp_path, write, message):
    write(tmp_path / "a.wav")
    with pytest.raises(SoundError, match=f"input.driving_audio: .*{message}"):
        read_speech(tmp_path / "a.wav", 5)


def test_a_cut_file_is_heard_as_far_as_it_goes(tmp_path):
    path = make_audio(tmp_path / "a.wav", 3.0)
    path.write_bytes(path.read_bytes()[:40_000])
    assert len(read_speech(path, 5)) / RATE == pytest.approx(1.25, abs=0.01)


def counted(model: Wav2Vec2Model) -> list[int]:
    """Grows by one with every run of the model."""
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    return runs


def test_known_sound_is_not_encoded_again(tmp_path):
    model = make_model()
    runs = counted(model)
    cache = FeatureCache(tmp_path / "cache")
    first = SpeechEncoder.of(model, cache).features(babble(1))
    again = SpeechEncoder.of(model, cache).features(babble(1))
    assert len(runs) == 1
    assert torch.equal(first, again)
    SpeechEncoder.of(model, cache).features(babble(1, seed=1))
    assert len(runs) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_another_encoder_has_other_features(tmp_path):
    cache = FeatureCache(tmp_path)
    features = [SpeechEncoder.of(make_model(seed), cache).features(babble(1)) for seed in (0, 1)]
    assert not torch.equal(*features)
    assert fingerprint(make_model(0)) == fingerprint(make_model(0))
    assert fingerprint(make_model(0)) != fingerprint(make_model(0).bfloat16())


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda _: b"", lambda data: b"x" * len(data)])
def test_a_damaged_file_in_the_cache_is_replaced(tmp_path, damage):
    model = make_model()
    runs = counted(model)
    encoder = SpeechEncoder.of(model, FeatureCache(tmp_path))
    features = encoder.features(babble(1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(encoder.features(babble(1)), features)
    assert torch.equal(encoder.features(babble(1)), features)
    assert len(runs) == 2


def test_what_was_not_used_for_longest_leaves_the_cache(tmp_path):
    cache = FeatureCache(tmp_path, most_bytes=10_000)
    (tmp_path / ".left-behind").write_bytes(bytes(100))
    os.utime(tmp_path / ".left-behind", (0, 0))
    for age, key in enumerate("abc"):
        cache.put(key, torch.full((1000,), float(age)))
        os.utime(tmp_path / f"{key}.safetensors", (age + 1, age + 1))
        if key == "b":
            assert cache.get("a") is not None
    assert cache.get("a") is not None
    assert cache.get("b") is None
    assert cache.get("c") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "c.safetensors"]
    cache.put("d", torch.zeros(10_000))
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


def test_the_sample_is_what_its_script_draws(model):
    samples = read_speech(SAMPLE, 10)
    assert len(samples) == 5 * RATE
    assert SAMPLE.stat().st_size < 170_000
    drawn = make_speech_sample.speech().astype(np.int32)
    assert np.abs(drawn - np.rint(samples * 32768).astype(np.int32)).max() <= 1
    loud = np.abs(samples).reshape(50, -1).max(1) > 0.05  # tenths of a second
    assert 25 <= loud.sum() <= 45
    assert not loud[-4:].any()
    features = SpeechEncoder.of(model).features(samples)
    assert features.shape == (LAYERS + 1, int(249 / 50 * HEARD_RATE), WIDTH)
