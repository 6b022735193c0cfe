"""Pictures from files come out as they are meant to be seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from media_samples import ORIENTATION, make_image, psnr, smooth_rgb
from wan_pipelines.pixels import cover_crop, load_image


@pytest.mark.parametrize("name", ["JPEG", "PNG", "BMP", "WEBP"])
def test_all_formats_give_rgb(tmp_path, name):
    image = load_image(make_image(tmp_path / "a", (64, 48), name))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert psnr(np.asarray(image), smooth_rgb(64, 48)) > 28


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    upright = smooth_rgb(64, 32)
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(turns[orientation])).save(tmp_path / "a", "PNG", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a")), upright)


def test_transparency_shows_white(tmp_path):
    picture = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    picture.save(tmp_path / "a", "PNG")
    image = load_image(tmp_path / "a")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 0)) == pytest.approx((127, 127, 127), abs=1)
    assert image.getpixel((2, 0)) == (255, 0, 0)


def test_grey_with_alpha_and_palette_with_a_clear_colour_show_white(tmp_path):
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la", "PNG")
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 0, 0, 200])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "p", "PNG", transparency=0)
    assert load_image(tmp_path / "la").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(tmp_path / "p").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(tmp_path / "p").getpixel((1, 1)) == (0, 0, 200)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "a", "PNG")
    image = np.asarray(load_image(tmp_path / "a"))
    assert np.abs(image[0, :, 0].astype(int) - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("L", "JPEG")])
def test_other_modes_become_rgb(tmp_path, mode, name):
    image = load_image(make_image(tmp_path / "a", (32, 32), name, mode=mode))
    assert image.mode == "RGB"
    assert 40 < np.asarray(image).mean() < 215


def test_text_and_other_formats_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(OSError, match="cannot identify"):
        load_image(tmp_path / "a.png")
    with pytest.raises(OSError, match="cannot identify"):
        load_image(make_image(tmp_path / "b", (32, 32), "TIFF"))


@pytest.mark.parametrize("size", [(64, 64), (100, 20), (20, 100), (33, 47)])
def test_cover_crop_has_the_size_and_range(size):
    pixels = cover_crop(Image.fromarray(smooth_rgb(80, 60)), *size)
    assert pixels.shape == (3, size[1], size[0])
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() < 0.2
    assert 0.8 < pixels.max() <= 1


def test_cover_crop_cuts_evenly_and_keeps_the_shape():
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = 255  # the middle third is all that a square keeps
    pixels = cover_crop(Image.fromarray(stripes), 20, 20)
    assert (pixels == 1).all()
    tall = cover_crop(Image.fromarray(stripes.swapaxes(0, 1)), 20, 20)
    assert (tall == 1).all()


def test_cover_crop_at_the_same_size_changes_nothing():
    picture = smooth_rgb(40, 24)
    pixels = cover_crop(Image.fromarray(picture), 40, 24)
    assert torch.equal((pixels * 255).round().byte(), torch.from_numpy(picture).permute(2, 0, 1))


def test_cover_crop_averages_when_it_shrinks():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    pixels = cover_crop(Image.fromarray(checks.astype(np.uint8)), 8, 8)
    assert (pixels - 0.5).abs().max() < 0.05
