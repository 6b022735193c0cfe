"""From a file to the sample and back: exact sizes, the right side up, true colours, and a circle that stays round."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from media_samples import ORIENTATION, make_deep_png, read_video
from tiny_checkpoint import CONFIGS
from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.framing import condition_image, visible
from wan_pipelines.mp4 import Mp4Spec, Mp4Writer
from wan_pipelines.pixels import load_image
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import checkpoint_folder, load_profile
from wan_pipelines.renderer import Media, Renderer
from wan_server.media import check
from wan_server.probe import inspect

RESOLUTIONS = ("720P", "1080P")
#: sides of a picture, and of its video at 720P and at 1080P
TABLE = [
    ((1280, 720), (1280, 720), (1920, 1080)),
    ((3840, 2160), (1280, 720), (1920, 1080)),
    ((1366, 768), (1280, 720), (1920, 1080)),
    ((720, 1280), (720, 1280), (1080, 1920)),
    ((1079, 1919), (720, 1280), (1080, 1920)),
    ((240, 240), (960, 960), (1440, 1440)),
    ((999, 1001), (960, 960), (1440, 1440)),
    ((1024, 768), (1104, 832), (1648, 1248)),
    ((4032, 3024), (1104, 832), (1648, 1248)),
    ((768, 1024), (832, 1104), (1248, 1648)),
    ((241, 321), (832, 1104), (1248, 1648)),
    ((1500, 1000), (1176, 784), (1764, 1176)),
    ((1000, 1500), (784, 1176), (1176, 1764)),
    ((777, 333), (1466, 628), (2200, 942)),
    ((333, 777), (628, 1466), (942, 2200)),
    ((2560, 1080), (1478, 624), (2218, 936)),
    ((5120, 1440), (1810, 510), (2716, 764)),
    ((1923, 251), (2658, 346), (3986, 520)),
    ((1920, 240), (2716, 340), (4072, 510)),
    ((240, 1920), (340, 2716), (510, 4072)),
]
QUARTERS = np.array([[[220, 30, 30], [30, 200, 30]], [[30, 30, 220], [220, 220, 30]]], np.uint8)
#: how a picture must be turned to be stored so that this EXIF orientation shows it upright
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def quarters(width: int, height: int) -> np.ndarray:
    """Red, green / blue, yellow: uint8 [height, width, 3]."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    return QUARTERS[rows[:, None], columns[None]]


def planned(path: Path, resolution: str = "720P", model: str = "wan2.2-i2v-a14b") -> RenderPlan:
    """The plan of a request with this first frame, which must be one that is accepted."""
    probe = inspect(path)
    assert check("first_frame", probe) == []
    assert probe.width
    assert probe.height
    request = PlanRequest("", None, resolution, probe.width / probe.height, seconds=1, seed=1)
    return make_plan(load_profile(model, CONFIGS), request)


def shown(path: Path, resolution: str = "720P") -> np.ndarray:
    """What the model sees of a file, without what is cut off later: float [height, width, 3] in [0, 1]."""
    plan = planned(path, resolution)
    sample = condition_image(load_image(path), plan)
    assert sample.shape == (3, plan.sample_height, plan.sample_width)
    picture = visible(sample[None], plan)[0].permute(1, 2, 0).numpy() / 2 + 0.5
    assert picture.shape == (plan.height, plan.width, 3)
    return picture


def assert_quarters(picture: np.ndarray, slack: float = 0.03) -> None:
    """The middles of the quarters have their colours."""
    height, width, _ = picture.shape
    found = picture[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2]
    assert found == pytest.approx(QUARTERS / 255, abs=slack)


@pytest.mark.parametrize(("sides", "at_720", "at_1080"), TABLE)
def test_every_shape_has_its_exact_size(tmp_path, sides, at_720, at_1080):
    Image.fromarray(quarters(*sides)).save(tmp_path / "a.png", compress_level=1)
    for resolution, size in zip(RESOLUTIONS, (at_720, at_1080), strict=True):
        plan = planned(tmp_path / "a.png", resolution)
        assert (plan.width, plan.height) == plan.visible_size == size
        assert (plan.sample_width, plan.sample_height) == tuple(-(-side // 16) * 16 for side in size)
    assert_quarters(shown(tmp_path / "a.png", "1080P" if max(sides) < 400 else "720P"))


def test_1080_lines_are_the_middle_of_1088(tmp_path):
    Image.fromarray(quarters(640, 360)).save(tmp_path / "a.png")
    plan = planned(tmp_path / "a.png", "1080P")
    rows = torch.arange(1088.0).view(1, 1, -1, 1).expand(1, 3, -1, 1920)
    assert (plan.sample_width, plan.sample_height) == (1920, 1088)
    assert visible(rows, plan)[0, 0, :, 0].tolist() == list(range(4, 1084))
    sample = condition_image(load_image(tmp_path / "a.png"), plan)
    assert all(torch.equal(sample[:, row], sample[:, 4]) for row in range(4))
    assert all(torch.equal(sample[:, row], sample[:, 1083]) for row in range(1084, 1088))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_rotated_pictures_are_the_right_side_up(tmp_path, orientation, format_name):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](quarters(480, 270)))
    Image.fromarray(stored).save(tmp_path / "a", format_name, exif=exif)
    picture = shown(tmp_path / "a")
    assert picture.shape == (720, 1280, 3)
    assert_quarters(picture)


@pytest.mark.parametrize("sides", [(480, 270), (240, 1920), (1921, 241)])
def test_sixteen_bits_a_channel_keep_their_range(tmp_path, sides):
    deep = quarters(*sides).astype(np.uint16) * 257
    assert_quarters(shown(make_deep_png(tmp_path / "a.png", deep)), slack=0.005)


def test_sixteen_bit_grey_is_a_straight_ramp(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 1280).astype(np.uint16), (720, 1))
    picture = shown(make_deep_png(tmp_path / "a.png", ramp))
    assert np.ptp(picture, axis=2).max() == 0
    assert picture[360, :, 0] == pytest.approx(np.linspace(0, 1, 1280), abs=0.005)


def test_sixteen_bit_alpha_is_laid_on_white(tmp_path):
    deep = quarters(480, 270).astype(np.uint16) * 257
    half = np.concatenate([deep, np.full((270, 480, 1), 32768, np.uint16)], axis=2)
    picture = shown(make_deep_png(tmp_path / "a.png", half))
    height, width, _ = picture.shape
    found = picture[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2]
    assert found == pytest.approx((QUARTERS / 255 + 1) / 2, abs=0.01)


@pytest.mark.parametrize(
    ("mode", "format_name", "slack"),
    [("CMYK", "JPEG", 0.03), ("P", "PNG", 0.01), ("P", "BMP", 0.01), ("RGBA", "WEBP", 0.03), ("RGB", "BMP", 0.01)],
)
def test_other_modes_show_the_same_colours(tmp_path, mode, format_name, slack):
    picture = Image.fromarray(quarters(481, 271))
    picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "a", format_name)
    assert_quarters(shown(tmp_path / "a"), slack)


@pytest.mark.parametrize(("mode", "format_name"), [("L", "JPEG"), ("L", "PNG"), ("LA", "PNG"), ("1", "PNG")])
def test_grey_stays_grey_and_as_bright(tmp_path, mode, format_name):
    grey = np.repeat(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 135, 0), 240, 1)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a", format_name)
    picture = shown(tmp_path / "a")
    assert np.ptp(picture, axis=2).max() == 0
    assert picture[180::360, 320::640, 0] == pytest.approx(np.array([[0, 1], [1, 0]]), abs=0.01)


def test_see_through_parts_are_white_and_the_rest_is_itself(tmp_path):
    see_through = Image.fromarray(quarters(480, 270)).convert("RGBA")
    see_through.paste((0, 0, 0, 0), (0, 0, 240, 135))
    see_through.save(tmp_path / "a.png")
    palette = Image.fromarray(quarters(480, 270)).quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((10, 10)))
    for name in ("a.png", "p.png"):
        picture = shown(tmp_path / name)
        assert picture[180, 320] == pytest.approx(1.0)
        assert picture[540::720, 320::640][0] == pytest.approx(QUARTERS[1] / 255, abs=0.01)


def swapped_profile() -> bytes:
    """An ICC profile whose red is sRGB's blue, and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_colours_are_those_of_the_profile(tmp_path, format_name):
    Image.fromarray(quarters(480, 270)[..., ::-1].copy()).save(
        tmp_path / "a", format_name, icc_profile=swapped_profile(), quality=95
    )
    assert_quarters(shown(tmp_path / "a"), slack=0.04)


def test_a_profile_turns_palettes_and_keeps_alpha(tmp_path):
    swapped = Image.fromarray(quarters(480, 270)[..., ::-1].copy())
    clear = swapped.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 240, 135))
    clear.save(tmp_path / "a.png", icc_profile=swapped_profile())
    swapped.quantize(8).save(tmp_path / "p.png", icc_profile=swapped_profile())
    picture = shown(tmp_path / "a.png")
    assert picture[180, 320] == pytest.approx(1.0)
    assert picture[540::720, 320::640][0] == pytest.approx(QUARTERS[1] / 255, abs=0.02)
    assert_quarters(shown(tmp_path / "p.png"), slack=0.02)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
def test_a_profile_that_cannot_be_used_is_left_aside(tmp_path, mode):
    lab = BytesIO(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()).read()
    for profile in (b"no profile", lab[:200], lab):
        picture = Image.new("RGB", (480, 270), (200, 200, 200)).convert(mode)
        picture.save(tmp_path / "a", "JPEG" if mode == "CMYK" else "PNG", icc_profile=profile)
        assert shown(tmp_path / "a")[::90, ::160] == pytest.approx(200 / 255, abs=0.02)


def circle(width: int, height: int, share: float = 0.38) -> np.ndarray:
    """A white disk on grey in the middle, smooth at its rim: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2)
    disk = np.clip(share * min(width, height) - distance + 0.5, 0, 1)
    return np.repeat((40 + 200 * disk).round().astype(np.uint8)[..., None], 3, axis=2)


def roundness(picture: np.ndarray) -> float:
    """Width of the disk over its height, by the spread of its light; 1 is a circle."""
    weight = np.clip(picture[..., 0].astype(float) - 110, 0, 60)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    spread = [np.sqrt(np.average((c - np.average(c, weights=weight)) ** 2, weights=weight)) for c in (x, y)]
    return float(spread[0] / spread[1])


def filmed(path: Path, plan: RenderPlan, target: Path) -> np.ndarray:
    """The first frame of an MP4 in which the sampled frames are what the model was shown."""
    sample = condition_image(load_image(path), plan)[None] / 2 + 0.5
    with Mp4Writer(target, Mp4Spec(plan.width, plan.height, plan.fps, 2)) as writer:
        writer.write(visible(sample, plan).expand(2, -1, -1, -1))
    return read_video(target)[0]


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize(
    "sides", [(1280, 720), (721, 1283), (1003, 751), (640, 640), (1501, 999), (333, 777), (1920, 240), (240, 1920)]
)
def test_a_circle_stays_round(tmp_path, sides, resolution):
    Image.fromarray(circle(*sides)).save(tmp_path / "a.png")
    plan = planned(tmp_path / "a.png", resolution)
    frame = filmed(tmp_path / "a.png", plan, tmp_path / "a.mp4")
    assert frame.shape == (plan.height, plan.width, 3)
    assert roundness(frame) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("model", ["tiny", "wan2.2-ti2v-5b"])
@pytest.mark.parametrize("sides", [(1280, 720), (1003, 751), (751, 1501)])
def test_a_circle_stays_round_at_the_sizes_of_other_models(tmp_path, sides, model):
    Image.fromarray(circle(*sides)).save(tmp_path / "a.png")
    plan = planned(tmp_path / "a.png", model=model)
    frame = filmed(tmp_path / "a.png", plan, tmp_path / "a.mp4")
    assert frame.shape == (plan.height, plan.width, 3)
    assert roundness(frame) == pytest.approx(1, abs=0.01)


def test_a_last_frame_of_another_shape_is_cut_and_not_stretched(tmp_path):
    Image.fromarray(quarters(640, 360)).save(tmp_path / "first.png")
    Image.fromarray(circle(700, 1100, share=0.2)).save(tmp_path / "last.png")
    plan = planned(tmp_path / "first.png")
    frame = filmed(tmp_path / "last.png", plan, tmp_path / "a.mp4")
    assert frame.shape == (720, 1280, 3)
    assert roundness(frame) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("sides", "resolution"), [((1280, 720), "720P"), ((721, 1283), "1080P")])
def test_a_circle_stays_round_through_the_embedded_model(tmp_path, sides, resolution):
    Image.fromarray(circle(*sides)).save(tmp_path / "a.png")
    profile = load_profile("tiny", CONFIGS)
    renderer = Renderer.load(profile, checkpoint_folder(profile, tmp_path, CONFIGS), "cpu")
    plan = replace(planned(tmp_path / "a.png", resolution, "tiny"), sigmas=(1.0, 0.8, 0.0))
    renderer.encode(plan, Media(tmp_path / "a.png"), tmp_path / "conditioning", lambda: None)
    renderer.denoise(plan, tmp_path / "conditioning", tmp_path / "latents", lambda *_: None)
    facts = renderer.decode(plan, tmp_path / "latents", tmp_path / "a.mp4", None, lambda *_: None)
    frame = np.asarray(upright(next(shown_frames(tmp_path / "a.mp4", plan.fps, 1))))
    assert (facts.width, facts.height) == (plan.width, plan.height) == frame.shape[1::-1]
    assert roundness(frame) == pytest.approx(1, abs=0.01)
