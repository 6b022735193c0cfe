"""The same latents as diffusers' own pipelines, from the same weights, texts, pictures and noise, in float32."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from parity import CASES, DOCUMENT, FORWARD_LIMIT, LATENTS_LIMIT, row
from parity_peers import Case, Difference, largest, make_media, open_peers, small_plan, small_profile, their_latents
from wan_pipelines.load import silence_progress_bars

CONCAT = Case("wan2.2-i2v-a14b", ("first_frame",))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Iterator[Path]:
    """Where miniatures of one layout are shared. One thread: the tensors are too small to share."""
    silence_progress_bars()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp("parity")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_as_diffusers(case, work):
    found = open_peers(case, work).compare()
    assert found.forward <= FORWARD_LIMIT == 1e-5
    assert found.latents <= LATENTS_LIMIT == 1e-4
    assert found.effect > 50 * LATENTS_LIMIT


@pytest.mark.parametrize("model", ["wan2.2-i2v-a14b", "wan2.2-ti2v-5b"])
def test_euler_over_the_levels_of_diffusers(work, model):
    """diffusers shifts Euler's default list twice; given the same list as explicit sigmas we end where it does."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(4)
    levels = {"sampler": "euler", "sigmas": tuple(scheduler.sigmas.tolist())}
    peers = open_peers(Case(model, ("first_frame",), levels), work)
    peers.pipeline.scheduler = scheduler
    assert peers.compare().latents <= LATENTS_LIMIT


def test_a_wide_frame_and_more_frames(work):
    case = replace(CONCAT, changes={"width": 96, "sample_width": 96, "frames": 17, "sample_frames": 17})
    assert open_peers(case, work).compare().latents <= LATENTS_LIMIT


def test_the_comparison_can_fail(work):
    """Another seed, prompt or guidance ends elsewhere by far more than the tolerance."""
    peers = open_peers(CONCAT, work)
    media = make_media(CONCAT.roles, peers.work / "media", peers.plan, seed=0)
    theirs = their_latents(peers.pipeline, peers.plan, media)
    for changes in (
        {"seed": 6},
        {"prompt": "a dog"},
        {"negative_prompt": "x"},
        {"guidance_high": 4.0},
        {"guidance_low": 4.0},
        {"boundary": 0.95},
    ):
        assert largest(peers.our_latents(replace(peers.plan, **changes), media) - theirs) > 10 * LATENTS_LIMIT


def test_the_document_has_every_row_and_its_figures_are_within_the_limits():
    """The figures themselves come from another machine; models, media and sampling numbers must be those of today."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| wan")]
    none = Difference(0, 0, 0, (0, 0))
    for line, case in zip(lines, CASES, strict=True):
        today = row(case, small_plan(small_profile(case.model), case), none)
        cells = re.split(r" *\| *", line)[1:-1]
        assert cells[:4] == re.split(r" *\| *", today)[1:-1][:4]
        assert float(cells[5]) <= FORWARD_LIMIT
        assert float(cells[6]) <= LATENTS_LIMIT < float(cells[7])
