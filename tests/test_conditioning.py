"""Conditioning: masks, pinned frames, per-token timesteps, the pixel video behind them."""

from __future__ import annotations

import pytest
import torch

from wan_pipelines.conditioning import (
    Conditioning,
    condition_video,
    prepare_clean_first_frame,
    prepare_first_frame,
    prepare_first_last_frame,
)

TEXT = torch.zeros(1, 8, 4)
PATCH = (1, 2, 2)


def mask_rows(conditioning: Conditioning) -> list[list[float]]:
    """The four mask channels of each latent frame, at one pixel."""
    assert conditioning.concat is not None
    assert conditioning.concat[:, :4].flatten(3).std(dim=3).max() == 0
    return conditioning.concat[0, :4, :, 0, 0].T.tolist()


def test_first_frame_mask():
    latents = torch.randn(1, 6, 3, 4, 4)
    conditioning = prepare_first_frame(TEXT, None, latents)
    assert mask_rows(conditioning) == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert conditioning.concat is not None
    assert torch.equal(conditioning.concat[:, 4:], latents)


def test_first_and_last_frame_mask():
    conditioning = prepare_first_last_frame(TEXT, TEXT, torch.randn(1, 6, 3, 4, 4))
    assert mask_rows(conditioning) == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_concat_family_has_one_timestep_and_more_channels():
    latents = torch.randn(1, 6, 3, 4, 4)
    conditioning = prepare_first_frame(TEXT, None, latents)
    assert conditioning.model_input(latents).shape == (1, 16, 3, 4, 4)
    assert torch.equal(conditioning.timesteps(937.0, latents, PATCH), torch.tensor([937.0]))
    assert conditioning.pin(latents) is latents


def test_clean_frame_replaces_the_first_latent_frame():
    clean, latents = torch.ones(1, 6, 1, 4, 4), torch.randn(1, 6, 3, 4, 4)
    conditioning = prepare_clean_first_frame(TEXT, None, clean)
    seen = conditioning.model_input(latents)
    assert torch.equal(seen[:, :, :1], clean)
    assert torch.equal(seen[:, :, 1:], latents[:, :, 1:])


def test_clean_tokens_are_at_timestep_zero():
    conditioning = prepare_clean_first_frame(TEXT, None, torch.ones(1, 6, 1, 4, 6))
    timesteps = conditioning.timesteps(500.0, torch.randn(1, 6, 3, 4, 6), PATCH)
    assert timesteps.tolist() == [[0.0] * 6 + [500.0] * 12]


@pytest.mark.parametrize("with_last", [False, True])
@pytest.mark.parametrize("frames", [5, 9, 81])
def test_condition_video(frames, with_last):
    first, last = torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -0.5)
    chunks = list(condition_video(first, last if with_last else None, frames))
    assert [c.shape[2] for c in chunks] == [1] + [4] * ((frames - 1) // 4)
    video = torch.cat(chunks, dim=2)[0, 0, :, 0, 0].tolist()
    assert video == [0.5] + [0.0] * (frames - 2) + [-0.5 if with_last else 0.0]


def test_grey_chunks_are_one_tensor():
    _, *grey, _ = condition_video(torch.ones(3, 4, 4), torch.ones(3, 4, 4), 81)
    assert len({id(chunk) for chunk in grey}) == 1


def test_tensors_leave_out_what_is_not_set_and_make_the_same_again():
    conditioning = prepare_clean_first_frame(TEXT, None, torch.ones(1, 6, 1, 4, 4))
    assert set(conditioning.tensors()) == {"prompt", "clean"}
    assert Conditioning(**conditioning.tensors()).negative is None
