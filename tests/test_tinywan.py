"""What the embedded checkpoint is trained and judged with: moves, flow, captions, schedule, resuming."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional

from server_process import ROOT
from tinywan.banks import encode, known_frames, known_mask
from tinywan.captions import Content, load_commands
from tinywan.denoiser import PlainAttention, build_denoiser
from tinywan.flow import cosine, mean_flow
from tinywan.motion import FLOW, FLOW_UNIT, Learner, motion_targets
from tinywan.moves import MOVES, Motion, camera_motion, canvas_size, film
from tinywan.recipe import load_recipe
from tinywan.scenes import drawn_scene
from tinywan.training import Schedule, Trainer

RECIPE = load_recipe(ROOT / "configs/training/wan-tiny.toml")
COMMANDS = load_commands(ROOT / "configs/training/commands.toml")
SIZE = (160, 96)
RENEWED = ("readers.", "denoiser.patch_embedding.", "denoiser.blocks.0.", "denoiser.blocks.1.", "denoiser.blocks.2.")


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


def test_every_step_belongs_to_a_stretch():
    denoiser = RECIPE.denoiser
    numbers = [denoiser.part(step) for step in range(denoiser.steps)]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(len(denoiser.stretches)))
    pools = [pool for one in denoiser.stretches for pool in one.pools]
    assert all(pool.frames % 4 == 1 and pool.width % 16 == 0 and pool.clips % pool.group == 0 for pool in pools)
    with pytest.raises(ValueError, match="ends"):
        denoiser.part(denoiser.steps)


@pytest.mark.parametrize("move", [move for move in MOVES if move != "static"])
def test_what_the_readers_should_read_is_where_each_token_came_from(move):
    rng, frames = Random(3), 33
    motion = camera_motion(move, RECIPE.data.pan["normal"], RECIPE.data.zoom["normal"])
    clip = film(drawn_scene(rng, canvas_size(motion, frames, SIZE)), motion, frames, SIZE, rng)
    read = motion_targets(torch.tensor([[motion.dx, motion.dy, motion.zoom]]), (9, 12, 20)).view(9, 6, 10, -1)[6]
    offset = 16 * (4 * read[..., 2:4] + read[..., 5:7])  # pixels; latent frame 6 stands for frames 21 to 24
    centre = torch.stack(torch.meshgrid(torch.arange(10), torch.arange(6), indexing="xy"), dim=-1) * 16 + 8.0
    now = look(clip[:, 22:24].mean(dim=1), centre)
    came_from = centre + offset
    inside = (came_from.min(dim=-1).values > 1) & (came_from[..., 0] < 159) & (came_from[..., 1] < 95)
    error = (now - look(clip[:, 0], came_from)).abs()[:, inside].mean()
    assert error < 0.05 * (now - look(clip[:, 0], centre)).abs()[:, inside].mean()


def look(picture: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Pixels of a picture [3, H, W] at places [h, w, 2] in pixels."""
    grid = at * 2 / torch.tensor([picture.shape[2], picture.shape[1]]) - 1
    return functional.grid_sample(picture[None], grid[None], align_corners=False)[0]


def small_denoiser() -> tuple[Learner, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model = build_denoiser(RECIPE.denoiser, RECIPE.vae.z_dim, RECIPE.text.width).eval()
    inputs = torch.randn(2, 52, 3, 4, 6), torch.tensor([900.0, 100.0]), torch.randn(2, 8, RECIPE.text.width)
    return Learner(model), inputs


@torch.inference_mode()
def test_reading_the_motion_changes_nothing():
    learner, inputs = small_denoiser()
    velocity, read = learner(*inputs)
    assert torch.equal(velocity, learner.denoiser(*inputs, return_dict=False)[0])
    assert read.shape == motion_targets(torch.zeros(2, 3), (3, 4, 6)).shape
    assert not any(block._forward_hooks for block in learner.denoiser.blocks)


@torch.inference_mode()
def test_looking_reads_what_a_whole_pass_reads():
    learner, inputs = small_denoiser()
    assert torch.equal(learner.look(*inputs), learner(*inputs)[1])
    assert len(learner.denoiser.blocks) == RECIPE.denoiser.layers


def test_the_first_blocks_can_begin_anew():
    learner, _ = small_denoiser()
    before = {name: weight.clone() for name, weight in learner.named_parameters()}
    learner.renew(3)
    changed = {name for name, weight in learner.named_parameters() if not torch.equal(weight, before[name])}
    assert any(name.startswith("denoiser.blocks.2.") for name in changed)
    assert all(name.startswith(RENEWED) for name in changed)


@pytest.mark.parametrize("motion", [(1.0, -0.5, 0.0), (0.0, 0.0, 0.01)])
def test_the_flow_that_the_readers_should_read_is_that_of_the_picture(motion):
    clip = film(drawn_scene(Random(2), (224, 160)), Motion(*motion), 9, SIZE, Random(3)).transpose(0, 1) / 2 + 0.5
    flow = motion_targets(torch.tensor([motion]), (3, 12, 20)).view(3, 6, 10, -1)[1, ..., FLOW] / FLOW_UNIT
    seen = mean_flow(clip)
    assert [seen.dx, seen.dy] == pytest.approx(flow.mean(dim=(0, 1)).tolist(), abs=0.1)
    growth = (flow[-1, -1] - flow[0, 0]) / torch.tensor([16 * 9, 16 * 5])
    assert [seen.zoom] * 2 == pytest.approx(growth.tolist(), abs=0.002)


@torch.inference_mode()
def test_plain_attention_is_attention():
    learner, inputs = small_denoiser()
    fused = learner(*inputs)[0]
    with PlainAttention():
        plain = learner(*inputs)[0]
    assert not torch.equal(plain, fused)  # another order of sums
    torch.testing.assert_close(plain, fused, atol=1e-5, rtol=1e-4)


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


def test_the_learning_rate_rises_once_and_falls_at_the_end_of_each_cycle():
    schedule = Schedule((10, 20), 2, peak=1.0, final=0.1, hold=0.5)
    assert schedule.steps == 30
    assert [schedule.at(step) for step in (0, 1, 5, 10, 20)] == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert schedule.at(7) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(0.4 * math.pi)))
    assert schedule.at(25) == pytest.approx(0.55)
    assert schedule.at(30) == pytest.approx(0.1)


def train_line(path: Path, steps: int) -> nn.Module:
    torch.manual_seed(0)
    trainer = Trainer(nn.Linear(4, 4), Schedule((12,), 2, 1e-2, 1e-3), 0.9, path)

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
    trainer = Trainer(line, Schedule((9,), 1, 1e-2, 1e-3), 0.9, tmp_path / "state.pt")
    assert not trainer.run(lambda step: {"norm": line.weight.pow(2).mean()}, deadline=0)
    again = Trainer(nn.Linear(2, 2), Schedule((9,), 1, 1e-2, 1e-3), 0.9, tmp_path / "state.pt")
    assert again.step == 1
