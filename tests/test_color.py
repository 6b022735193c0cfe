"""RGB to YUV against the constants of BT.709 and against swscale."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from media_samples import psnr, smooth_rgb
from wan_kernels.color import rgb_to_i420, rgb_to_yuv420, rgb_to_yuv444


def as_frames(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def seen_by_swscale(planes: torch.Tensor, colorspace: Colorspace) -> np.ndarray:
    frame = av.VideoFrame.from_ndarray(planes.numpy(), format="yuv420p")
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=colorspace,
        dst_colorspace=colorspace,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    return rgb.to_ndarray()


@pytest.mark.parametrize(
    ("rgb", "yuv"),
    [
        ((0, 0, 0), (16, 128, 128)),
        ((1, 1, 1), (235, 128, 128)),
        ((1, 0, 0), (63, 102, 240)),
        ((0, 1, 0), (173, 42, 26)),
        ((0, 0, 1), (32, 240, 118)),
        ((0.5, 0.5, 0.5), (126, 128, 128)),
        ((2, 2, 2), (235, 128, 128)),
        ((-1, -1, -1), (16, 128, 128)),
    ],
)
def test_flat_colours_have_the_values_of_bt709(rgb, yuv):
    frames = torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(2, 3, 4, 6)
    for plane, value in zip(rgb_to_yuv420(frames), yuv, strict=True):
        assert (plane == value).all()
    assert (rgb_to_yuv444(frames) == torch.tensor(yuv, dtype=torch.uint8).view(1, 3, 1, 1)).all()


def test_values_match_the_standard_in_float64():
    rgb = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    r, g, b = rgb.unbind(1)
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    full = torch.stack((16 + 219 * luma, 128 + 224 * (b - luma) / 1.8556, 128 + 224 * (r - luma) / 1.5748), dim=1)
    y, u, v = rgb_to_yuv420(rgb)
    assert (y - full[:, 0]).abs().max() <= 0.501
    halves = full.unflatten(-2, (4, 2)).unflatten(-1, (6, 2)).mean(dim=(-3, -1))
    assert (u - halves[:, 1]).abs().max() <= 0.501
    assert (v - halves[:, 2]).abs().max() <= 0.501
    assert (rgb_to_yuv444(rgb) - full).abs().max() <= 0.501


def test_shapes_and_layout():
    frames = as_frames(smooth_rgb(24, 10), smooth_rgb(24, 10, 0.5))
    y, u, v = rgb_to_yuv420(frames)
    assert (y.shape, u.shape, v.shape) == ((2, 10, 24), (2, 5, 12), (2, 5, 12))
    assert {y.dtype, u.dtype, v.dtype} == {torch.uint8}
    packed = rgb_to_i420(frames)
    assert packed.shape == (2, 15, 24)
    assert torch.equal(packed.flatten(1), torch.cat((y.flatten(1), u.flatten(1), v.flatten(1)), dim=1))
    assert packed.is_contiguous()


def test_input_is_left_alone():
    frames = as_frames(smooth_rgb(8, 8))
    before = frames.clone()
    rgb_to_i420(frames)
    rgb_to_yuv444(frames)
    assert torch.equal(frames, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_computed_in_float32(dtype):
    frames = as_frames(smooth_rgb(16, 16)).to(dtype)
    assert torch.equal(rgb_to_i420(frames), rgb_to_i420(frames.float()))


@pytest.mark.parametrize("size", [(9, 8), (8, 9)])
def test_odd_sides_are_refused(size):
    with pytest.raises(ValueError, match="even sides"):
        rgb_to_i420(torch.zeros(1, 3, *size))


def test_swscale_sees_the_same_picture_as_bt709_and_another_one_as_bt601():
    picture = smooth_rgb(192, 128)
    planes = rgb_to_i420(as_frames(picture))[0]
    assert psnr(seen_by_swscale(planes, Colorspace.ITU709), picture) >= 40
    assert psnr(seen_by_swscale(planes, Colorspace.ITU601), picture) < 35


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_planes():
    frames = as_frames(smooth_rgb(64, 32), smooth_rgb(64, 32, 0.3))
    difference = rgb_to_i420(frames.cuda()).cpu().int() - rgb_to_i420(frames).int()
    assert difference.abs().max() <= 1
