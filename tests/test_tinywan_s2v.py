"""How the audio-driven sister is trained: sounds, speakers, and that it is told in training what the pipeline tells."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from make_face_sample import speaker
from test_s2v_speech import write_wave
from tiny_checkpoint import CONFIGS, S2V
from tinywan.lipsync import Act, Played, correlation, envelope, lag, strangers
from tinywan.recipe import load_recipe
from tinywan.s2v_recipe import Takes, load_sister_recipe
from tinywan.speakers import Speaker, cast
from tinywan.talker import FPS, Set, build_talker, make_clips
from tinywan.voices import draw_sound, openings
from wan_pipelines.s2v.clips import ChainSpec, make_chain
from wan_pipelines.s2v.speech import RATE, SpeechEncoder, hear

pytest_plugins = ("pipeline_fixtures",)
SISTER = load_sister_recipe(CONFIGS / "training" / "wan-tiny-s2v.toml")
SCENES = load_recipe(CONFIGS / "training" / "wan-tiny.toml")
DRAWN = replace(SCENES, data=replace(SCENES.data, drawn=1.0))
SIZE = (64, 64)


def drawn_speaker(kind: str, seed: int = 1) -> Speaker:
    return cast(replace(SISTER.cast, kinds={kind: 1.0}), DRAWN, [], Random(seed), SIZE)


def test_the_recipe_is_what_the_profile_says():
    from wan_pipelines.profile import load_profile

    profile, shape = load_profile("tiny-s2v", CONFIGS), SISTER.talking
    assert (profile.motion_frames, profile.clip_frames) == (shape.motion_frames, shape.clip_frames)
    assert profile.shift == shape.sample_shift
    assert profile.text_len == SCENES.text.length
    most = ChainSpec(clip_frames=shape.clip_frames).most(0) // 4
    assert max(takes.latents for takes in shape.takes) == max(lesson.latents for lesson in shape.lessons) == most


@pytest.mark.parametrize("course", [SCENES.denoiser, SISTER.talking], ids=["tiny", "tiny-s2v"])
def test_every_step_has_its_part_and_cycles_end_with_the_last(course):
    begins = [course.begin(number) for number in range(len(course.parts))]
    assert [course.part(step) for step in begins] == list(range(len(course.parts)))
    assert course.part(course.steps - 1) == len(course.parts) - 1
    with pytest.raises(ValueError, match="ends 3 steps before"):
        course.part(course.steps + 3)
    with pytest.raises(ValueError, match=f"cycles: must add up to the steps of all parts, {course.steps}"):
        replace(course, cycles=(*course.cycles, 1))


def test_what_is_drawn_depends_on_the_number_alone():
    one, again = (draw_sound(SISTER.voice, SISTER.rng("sound", 1), 1.0) for _ in range(2))
    assert np.array_equal(one, again)
    assert len(one) == RATE
    pictures = [drawn_speaker("face", 5).draw(torch.zeros(1)) for _ in range(2)]
    assert torch.equal(*pictures)


def test_a_mouth_is_open_while_it_is_loud_and_shut_behind_the_end():
    samples = np.zeros(2 * RATE, np.float32)
    samples[RATE // 2 : RATE] = np.random.default_rng(0).normal(0, 0.1, RATE // 2)
    found = openings(samples, np.array([0.1, 0.75, 1.5, 2.5]), SISTER.voice)
    assert found[1] > 0.8
    assert found[0] < 0.01
    assert found[2] < 0.01
    assert found[3] == 0
    assert np.allclose(openings(samples / 50, np.array([0.75]), SISTER.voice), found[1], atol=0.02)  # any loudness


@pytest.mark.parametrize("kind", ["face", "shape"])
def test_what_is_measured_is_what_was_drawn(kind):
    for seed in range(3):
        someone, wanted = drawn_speaker(kind, seed), torch.linspace(0, 1, 9)
        frames = someone.draw(wanted)
        assert frames.shape == (3, 9, 64, 64)
        assert frames.abs().max() <= 1
        found = someone.measure(frames)
        assert (found.diff() > 0).all()
        assert correlation(found.numpy(), wanted.numpy()) > 0.97


def test_nothing_moves_in_a_still_picture():
    still = drawn_speaker("still")
    assert torch.equal(*still.draw(torch.tensor([0.0, 1.0])).unbind(1))
    assert not still.moving().any()


def test_the_same_face_in_any_size():
    large, small = speaker(360).draw(torch.tensor([0.7])), speaker(180).draw(torch.tensor([0.7]))
    assert (torch.nn.functional.avg_pool2d(large[:, 0], 2) - small[:, 0]).abs().mean() < 0.01


def test_lags_and_envelopes():
    samples = np.zeros(3 * RATE, np.float32)
    samples[RATE : RATE + 1000] = 0.5
    loud = envelope(samples, 48)
    assert int(loud.argmax()) == 16
    assert loud[:15].max() == 0
    wave = np.random.default_rng(1).normal(size=60)
    assert lag(wave, np.roll(wave, 8), 16) == 8
    assert lag(np.roll(wave, 3), wave, 16) == -3
    assert correlation(wave, np.zeros(60)) == 0


def test_what_is_said_of_a_played_act():
    """Frames as they should be, a little redder in their third second."""
    speakers = [drawn_speaker("shape", seed) for seed in range(2)]
    samples = [draw_sound(SISTER.voice, Random(seed), 3.0) for seed in range(2)]
    played = []
    for someone, sound in zip(speakers, samples, strict=True):
        frames = someone.draw(torch.from_numpy(openings(sound, np.arange(48) / FPS, SISTER.voice)))
        frames[0, 32:] += 0.04
        played.append(Played(Act(someone, sound, 3), frames))
    assert min(one.follows for one in played) > 0.8
    assert max(strangers(played, 0.8)) < 0.5
    for one in played:
        assert one.drift(1) == pytest.approx(0.02, abs=1e-3)
        assert 42 < one.held < 44  # 43.5 for a third of one of three channels; soft edges move a little


@pytest.mark.parametrize(("plain", "kind"), [(1.0, "one colour"), (0.0, "a picture")])
def test_kinds_of_speakers(plain, kind):
    numbers = replace(SISTER.cast, plain=plain, kinds={"shape": 1.0})
    assert cast(numbers, DRAWN, [], Random(1), SIZE).kind == f"shape before {kind}"
    assert [drawn_speaker(name).kind for name in ("face", "still")] == ["face", "still"]


@pytest.fixture
def stage(tiny) -> Set:
    """Random parts in place of wan-tiny's."""
    model = tiny(S2V)
    plain = replace(SISTER.talking, unheard=0.0, ends=0.0, motion_frames=9, motion_buckets=(1, 1, 1))
    return Set(
        replace(SISTER, talking=plain),
        DRAWN,
        [],
        model.checkpoint.vae,
        SpeechEncoder.of(model.checkpoint.audio_encoder),
        torch.zeros(9, 8, 32),
    )


@pytest.mark.parametrize(("kind", "before"), [("first", 0), ("next", 3)])
def test_clips_have_what_the_transformer_takes(stage, kind, before):
    clips = make_clips(stage, Takes(1.0, kind, 64, 64, latents=3, banks=1, clips=2, group=2), Random(1))
    assert clips.latents.shape == (2, 16, 3, 8, 8)
    assert clips.motion.shape == (2, 16, before, 8, 8)
    assert clips.reference.shape == (2, 16, 1, 8, 8)
    assert clips.audio.shape == (2, 4, 48, 12)
    assert clips.moving.shape == (2, 1, 1, 8, 8)
    fewer = clips.drawn(2, 2, Random(1))
    assert (fewer.latents.shape[2], fewer.audio.shape[3]) == (2, 8)


def test_the_first_clip_of_training_hears_what_the_pipeline_hears(stage, tmp_path):
    """The sound of a clip is drawn again here, written to a file and heard by the pipeline."""
    rng, takes = Random(4), Takes(1.0, "first", 64, 64, latents=13, banks=1, clips=1, group=1)
    clips = make_clips(stage, takes, Random(4))
    cast(SISTER.cast, DRAWN, [], rng, SIZE)
    rng.random()  # whether the sound ends early
    end = (4 * takes.latents - 3) / FPS
    samples = draw_sound(SISTER.voice, rng, end + rng.uniform(0, end))
    chain = make_chain(ChainSpec(), 3, 0)
    path = write_wave(tmp_path / "a.wav", samples / np.abs(samples).max())
    heard = hear(stage.ears, path, chain)[0]
    assert heard.shape == (4, 48, 52)
    # the pipeline reads 3 s of it, and normalises what it has read
    assert correlation(clips.audio[0].flatten().numpy(), heard.flatten().numpy()) > 0.95


def test_layers_of_the_speech_model_stay_weighed_alike():
    model = build_talker(SISTER.talking, 4, 8, (6, 3))
    assert not model.causal_audio_encoder.weights.requires_grad
    assert bool((model.causal_audio_encoder.weights == 1).all())
