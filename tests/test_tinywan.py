"""What the embedded checkpoint is trained and judged with: moves, flow, captions, schedule, resuming."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

from server_process import ROOT
from tinywan.captions import Content, load_commands
from tinywan.denoiser import encode, known_frames, known_mask
from tinywan.flow import cosine, mean_flow
from tinywan.moves import MOVES, camera_motion, canvas_size, film
from tinywan.recipe import load_recipe
from tinywan.scenes import drawn_scene
from tinywan.training import Schedule, Trainer

RECIPE = load_recipe(ROOT / "configs/training/wan-tiny.toml")
COMMANDS = load_commands(ROOT / "configs/training/commands.toml")
SIZE = (160, 96)


def shapes_clip(move: str, seed: int, frames: int = 17) -> torch.Tensor:
    """[T, 3, H, W] in [0, 1]: the camera move over a drawn collage."""
    rng = Random(seed)
    motion = camera_motion(move, RECIPE.data.pan["normal"], RECIPE.data.zoom["normal"])
    scene = drawn_scene(rng, canvas_size(motion, frames, SIZE))
    while scene.pattern != "shapes":
        scene = drawn_scene(rng, canvas_size(motion, frames, SIZE))
    return film(scene, motion, frames, SIZE, rng).transpose(0, 1) / 2 + 0.5


@pytest.mark.parametrize("move", MOVES)
def test_the_measured_flow_names_the_filmed_move(move):
    found = [mean_flow(shapes_clip(move, seed)).move for seed in range(3)]
    assert found == [move] * 3


def test_the_measured_speed_is_the_filmed_speed():
    flow = mean_flow(shapes_clip("pan_left", 5))
    assert flow.dx == pytest.approx(RECIPE.data.pan["normal"], rel=0.1)
    assert abs(flow.dy) < 0.05
    assert mean_flow(shapes_clip("zoom_in", 5)).zoom == pytest.approx(RECIPE.data.zoom["normal"], rel=0.15)


def test_a_clip_turned_round_flows_the_other_way():
    clip = shapes_clip("pan_up", 2)
    assert cosine(mean_flow(clip), mean_flow(clip.flip(0))) < -0.95


@pytest.mark.parametrize("language", ["en", "zh"])
def test_held_out_phrases_are_never_trained_on(language):
    for phrases in (*COMMANDS.moves.values(), *COMMANDS.sprites.values()):
        assert not set(phrases.of(language, False)) & set(phrases.of(language, True))


def test_every_move_has_its_phrases():
    assert tuple(COMMANDS.moves) == MOVES
    assert set(COMMANDS.speeds["en"]) == set(RECIPE.data.pan) == set(RECIPE.data.zoom)


def test_captions_are_a_function_of_their_random_numbers():
    content = Content("pan_left", "slow", "checks", ("red", "blue"))
    captions = [COMMANDS.caption(content, Random(7)) for _ in range(2)]
    assert captions[0] == captions[1] != COMMANDS.caption(content, Random(8))


def test_training_and_held_out_photographs_are_apart():
    train = [name for package in RECIPE.photos for name in package.train]
    held_out = [name for package in RECIPE.photos for name in package.held_out]
    assert len(train) >= 40
    assert len(held_out) >= 10
    assert not set(train) & set(held_out)


def test_every_step_has_its_bank():
    denoiser = RECIPE.denoiser
    numbers = [denoiser.bank(step)[0] for step in range(denoiser.steps)]
    assert numbers == sorted(numbers)
    assert all(bank.frames % 4 == 1 and bank.width % 16 == 0 for one in denoiser.rounds for bank in one.banks)
    with pytest.raises(ValueError, match="ends"):
        denoiser.bank(denoiser.steps)


@pytest.mark.parametrize(
    ("mode", "first", "second", "last"),
    [("first", 1, 0, 0), ("first_last", 1, 0, 1), ("prefix", 1, 1, 0), ("prefix_last", 1, 1, 1), ("text", 0, 0, 0)],
)
def test_known_frames_of_each_mode(mode, first, second, last):
    known = known_frames(mode, 33, Random(1))
    assert [int(known[i]) for i in (0, 1, -1)] == [first, second, last]
    assert int(known.sum()) % 4 == (first + last) % 4


def test_training_shows_the_model_what_the_pipeline_shows_it():
    from tinywan.autoencoder import build_vae
    from wan_pipelines.conditioning import condition_video, prepare_concat
    from wan_pipelines.vae import encode_frames

    torch.manual_seed(0)
    vae, pixels = build_vae(RECIPE.vae).eval(), torch.rand(3, 17, 32, 32) * 2 - 1
    known = torch.zeros(17, dtype=torch.bool)
    known[:5] = known[-1] = True
    with torch.inference_mode():
        mine = encode(vae, pixels[None], known)
        theirs = encode_frames(vae, condition_video(pixels[:, :5].transpose(0, 1), pixels[:, -1], 17))
        concat = prepare_concat(mine, None, theirs, prefix_frames=5, with_last=True).concat
    assert concat is not None
    assert torch.equal(known_mask(known, theirs), concat[:, :4])
    assert (mine - theirs).abs().max() < 0.05 * theirs.std()  # training encodes in bfloat16


def train_line(path: Path, steps: int) -> nn.Module:
    torch.manual_seed(0)
    trainer = Trainer(nn.Linear(4, 4), Schedule(12, 2, 1e-2, 1e-3), 0.9, path)

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        if step == steps:
            raise KeyboardInterrupt
        return {"square": (trainer.model(x) - 2 * x).pow(2).mean()}

    try:
        trainer.run(loss_of, float("inf"))
    except KeyboardInterrupt:
        trainer.save()
    return trainer.average


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = train_line(tmp_path / "whole.pt", 99)
    train_line(tmp_path / "parts.pt", 5)
    resumed = train_line(tmp_path / "parts.pt", 99)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_deadline_stops_the_training_with_its_state(tmp_path):
    torch.manual_seed(0)
    line = nn.Linear(2, 2)
    trainer = Trainer(line, Schedule(9, 1, 1e-2, 1e-3), 0.9, tmp_path / "state.pt")
    assert not trainer.run(lambda step: {"norm": line.weight.pow(2).mean()}, deadline=0)
    again = Trainer(nn.Linear(2, 2), Schedule(9, 1, 1e-2, 1e-3), 0.9, tmp_path / "state.pt")
    assert again.step == 1
