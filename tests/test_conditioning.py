"""Conditioning: masks, pinned frames, per-token timesteps, the pixel video behind them."""

from __future__ import annotations

import pytest
import torch

from wan_pipelines.conditioning import Conditioning, condition_video, prepare_clean, prepare_concat

TEXT = torch.zeros(1, 8, 4)
PATCH = (1, 2, 2)


def mask_rows(conditioning: Conditioning) -> list[list[float]]:
    """The four mask channels of each latent frame, at one pixel."""
    assert conditioning.concat is not None
    assert conditioning.concat[:, :4].flatten(3).std(dim=3).max() == 0
    return conditioning.concat[0, :4, :, 0, 0].T.tolist()


KNOWN, NEW, ENDS = [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("prefix_frames", "with_last", "rows"),
    [
        (0, False, [NEW, NEW, NEW, NEW, NEW, NEW]),
        (1, False, [KNOWN, NEW, NEW, NEW, NEW, NEW]),
        (1, True, [KNOWN, NEW, NEW, NEW, NEW, ENDS]),
        (5, False, [KNOWN, KNOWN, NEW, NEW, NEW, NEW]),
        (17, False, [KNOWN, KNOWN, KNOWN, KNOWN, KNOWN, NEW]),
        (17, True, [KNOWN, KNOWN, KNOWN, KNOWN, KNOWN, ENDS]),
    ],
)
def test_mask_of_known_frames(prefix_frames, with_last, rows):
    latents = torch.randn(1, 6, 6, 4, 4)
    conditioning = prepare_concat(TEXT, None, latents, prefix_frames=prefix_frames, with_last=with_last)
    assert mask_rows(conditioning) == rows
    assert conditioning.concat is not None
    assert torch.equal(conditioning.concat[:, 4:], latents)


def test_concat_family_has_one_timestep_and_more_channels():
    latents = torch.randn(1, 6, 3, 4, 4)
    conditioning = prepare_concat(TEXT, None, latents, prefix_frames=1, with_last=False)
    assert conditioning.model_input(latents).shape == (1, 16, 3, 4, 4)
    assert torch.equal(conditioning.timesteps(937.0, latents, PATCH), torch.tensor([937.0]))
    assert conditioning.pin(latents) is latents


def test_clean_frame_replaces_the_first_latent_frame():
    clean, latents = torch.ones(1, 6, 1, 4, 4), torch.randn(1, 6, 3, 4, 4)
    conditioning = prepare_clean(TEXT, None, clean)
    seen = conditioning.model_input(latents)
    assert torch.equal(seen[:, :, :1], clean)
    assert torch.equal(seen[:, :, 1:], latents[:, :, 1:])


def test_clean_tokens_are_at_timestep_zero():
    conditioning = prepare_clean(TEXT, None, torch.ones(1, 6, 1, 4, 6))
    timesteps = conditioning.timesteps(500.0, torch.randn(1, 6, 3, 4, 6), PATCH)
    assert timesteps.tolist() == [[0.0] * 6 + [500.0] * 12]


@pytest.mark.parametrize("with_last", [False, True])
@pytest.mark.parametrize("known", [0, 1, 5, 17])
@pytest.mark.parametrize("frames", [21, 81])
def test_condition_video(frames, known, with_last):
    values = [0.1 + i / 100 for i in range(known)]
    prefix = torch.tensor(values).view(-1, 1, 1, 1).expand(known, 3, 4, 4)
    last = torch.full((3, 4, 4), -0.5) if with_last else None
    chunks = list(condition_video(prefix, last, frames))
    assert [c.shape[2] for c in chunks] == [1] + [4] * ((frames - 1) // 4)
    video = torch.cat(chunks, dim=2)[0, 0, :, 0, 0].tolist()
    ending = [-0.5] if with_last else [0.0]
    assert video == pytest.approx(values + [0.0] * (frames - known - 1) + ending)


def test_a_clip_may_leave_room_for_one_latent_frame_only():
    chunks = list(condition_video(torch.ones(17, 3, 4, 4), torch.full((3, 4, 4), -1.0), 21))
    assert torch.cat(chunks, dim=2)[0, 0, 16:, 0, 0].tolist() == [1, 0, 0, 0, -1]


@pytest.mark.parametrize("known", [0, 1, 17])
def test_grey_chunks_are_one_tensor(known):
    chunks = list(condition_video(torch.ones(known, 3, 4, 4), torch.ones(3, 4, 4), 81))
    grey = [chunk for chunk in chunks[1:] if not chunk.any()]
    assert len(grey) == 19 - max(known - 1, 0) // 4
    assert len({id(chunk) for chunk in grey}) == 1


def test_tensors_leave_out_what_is_not_set_and_make_the_same_again():
    conditioning = prepare_clean(TEXT, None, torch.ones(1, 6, 1, 4, 4))
    assert set(conditioning.tensors()) == {"prompt", "clean"}
    assert Conditioning(**conditioning.tensors()).negative is None
