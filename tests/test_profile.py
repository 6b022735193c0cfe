"""Profiles: what the shipped ones say, and how a wrong one is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wan_pipelines.errors import ProfileError
from wan_pipelines.profile import checkpoint_folder, list_profiles, load_profile, load_served

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CONCAT, CLIPS = 'conditioning = "concat"', 'conditioning = "s2v"\nclip_frames'
GOOD = (CONFIGS / "models" / "tiny.toml").read_text(encoding="utf-8")


def write(folder: Path, text: str) -> Path:
    (folder / "models").mkdir()
    (folder / "models" / "mine.toml").write_text(text, encoding="utf-8")
    return folder


def test_shipped_profiles_load():
    names = [p.name for p in list_profiles(CONFIGS)]
    assert names == sorted(names)
    assert {"tiny", "tiny-s2v", "tiny-ti2v", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b"} < set(names)


def test_published_numbers_of_a14b():
    profile = load_profile("wan2.2-i2v-a14b", CONFIGS)
    assert (profile.fps, profile.steps, profile.shift, profile.boundary) == (16, 40, 5.0, 0.9)
    assert (profile.guidance_high, profile.guidance_low) == (3.5, 3.5)
    assert (profile.max_seconds, profile.native_frames, profile.chaining) == (15, 81, "prefix")


def test_tiny_covers_the_longest_request():
    assert all(load_profile(name, CONFIGS).max_seconds == 15 for name in ("tiny", "tiny-s2v", "tiny-ti2v"))


@pytest.mark.parametrize(
    ("name", "folder"),
    [("tiny", "configs/tiny"), ("tiny-ti2v", "weights/tiny-ti2v"), ("wan2.2-ti2v-5b", "weights/wan2.2-ti2v-5b")],
)
def test_shipped_weights_lie_beside_the_configs_and_others_where_they_are_kept(name, folder):
    profile = load_profile(name, CONFIGS)
    assert checkpoint_folder(profile, Path("weights"), Path("configs")) == Path(folder)


def test_the_demonstration_model_does_not_pass_for_another():
    profile = load_profile("tiny", CONFIGS)
    assert "not a Wan release" in profile.weights
    assert profile.repository is None


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ProfileError, match=r"'wan9' is unknown.*tiny, tiny-s2v, tiny-ti2v"):
        load_profile("wan9", CONFIGS)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "tiny.toml"])
def test_a_name_is_not_a_path(name):
    with pytest.raises(ProfileError, match="is unknown"):
        load_profile(name, CONFIGS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 8", "steps = 0", r"steps: .*greater than or equal to 1 \(got 0\)"),
        ("steps = 8", 'steps = "8"', r"steps: .*valid integer \(got '8'\)"),
        ("steps = 8", "steps = 8\nstep = 9", "step: unknown key"),
        ("steps = 8\n", "", "steps: is missing"),
        ("shift = 5.0", "shift = -1.0", r"shift: .*greater than 0"),
        ('sampler = "unipc"', 'sampler = "ddim"', r"sampler: .*'unipc' or 'euler'"),
        ('"first_clip"]', '"middle_frame"]', r"inputs\.2: .*got 'middle_frame'"),
        ("max_frames = 241", "max_frames = 240", r"max_frames: must be 4n\+1 \(got 240\)"),
        ("prefix_frames = 17", "prefix_frames = 16", r"prefix_frames: must be 4n\+1 .*\(got 16\)"),
        ("prefix_frames = 17", "prefix_frames = 241", r"prefix_frames: must be .* below max_frames \(got 241\)"),
        ('weights_from = "shipped"\n', "", 'repository: is needed with weights_from = "repository"'),
        ('"shipped"', '"shipped"\nrepository = "a/b"', "repository: is needed with .*, and only then"),
        ("steps = 8", 'steps = 8\nneeds = ["last_frame"]', r"needs: must be .* empty with text_only"),
        ("text_only = true", 'needs = ["driving_audio"]', "needs: must be among inputs"),
        ("steps = 8", "steps = 8\nclip_frames = 80", r'clip_frames, motion_frames: are needed with .* "s2v", and only'),
        (CONCAT, f"{CLIPS} = 82\nmotion_frames = 9", "clip_frames: .*multiple of 4"),
        (
            CONCAT,
            f"{CLIPS} = 80\nmotion_frames = 10",
            r"motion_frames: must be 4n\+1 and at most clip_frames \(got 10\)",
        ),
        (CONCAT, f"{CLIPS} = 8\nmotion_frames = 9", r"motion_frames: .* at most clip_frames \(got 9\)"),
        ("steps = 8", "steps = 8\ngpu_gib_least = 1.0", "gpu_gib_least: must be at most gpu_gib"),
        ("steps = 8", 'steps = 8\ntrained_sizes = ["720p"]', r"trained_sizes\.0: .*'720p'"),
        ("steps = 8", "steps = 8\nsigmas = [1.0]", r"sigmas: belongs into a table \[presets"),
        ('"shipped"', '"cloud"', "weights_from: .*'shipped', 'random' or 'repository'"),
        ("sample_pixels = 16384", "sample_pixels = 1024\nboundary = 1.5", r"boundary: .*less than 1"),
        ("size_multiple = 16", "size_multiple = 256", r"sample_pixels: must be at least size_multiple squared"),
        ("steps = 8", 'steps = 8\nname = "x"', "name: is the file's own name"),
        ("steps = 8", "steps = ", "Invalid value"),
    ],
)
def test_wrong_profile_names_file_and_key(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile("mine", write(tmp_path, GOOD.replace(old, new)))
    assert "mine.toml" in str(caught.value)


FAST = """
[presets.fast]
sampler = "euler"
sigmas = [1.0, 0.5]
guidance_high = 1.0
guidance_low = 1.0
[[presets.fast.loras]]
repository = "a/b"
file = "folder/c.safetensors"
"""


def test_a_preset_replaces_what_it_names(tmp_path):
    quality = load_profile("mine", write(tmp_path, GOOD + FAST))
    fast = quality.with_preset("fast")
    assert (fast.name, fast.preset, fast.served_as) == ("mine", "fast", "mine:fast")
    assert (fast.sampler, fast.steps, fast.sigmas, fast.shift) == ("euler", 2, (1.0, 0.5), quality.shift)
    assert (quality.served_as, quality.is_guided, fast.is_guided) == ("mine", True, False)
    assert fast.loras[0].path_in(Path("w")) == Path("w/loras/c.safetensors")
    assert (quality.loras, quality.with_preset("quality")) == ((), quality)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('sampler = "euler"', 'sampler = "euler"\nspeed = 2', "presets.fast.speed: unknown key"),
        ("sigmas = [1.0, 0.5]", "sigmas = [0.5, 1.0]", "sigmas: must fall from at most 1"),
        ("sigmas = [1.0, 0.5]", "sigmas = [1.0, 0.0]", "sigmas: must fall .* without the final 0"),
        ("sigmas = [1.0, 0.5]", "sigmas = []", "presets.fast.sigmas: .*at least 1"),
        ("sigmas = [1.0, 0.5]", "sigmas = [1.0, 0.5]\nsteps = 2", "steps, sigmas: only one"),
        ('file = "folder/c.safetensors"', "", "presets.fast.loras.0.file: is missing"),
        ("[presets.fast]", "own_weights = true\n[presets.fast]", "own_weights: belongs into a table"),
        ("[presets.fast]", "[presets.quality]", "presets.quality: stands at the top level"),
    ],
)
def test_a_wrong_preset_names_file_and_key(tmp_path, old, new, message):
    text = FAST.replace("presets.fast", "presets.quality") if "quality]" in new else FAST.replace(old, new)
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile("mine", write(tmp_path, GOOD + text))
    assert "mine.toml" in str(caught.value)


def test_a_served_model_is_a_name_with_or_without_a_preset():
    assert load_served("wan2.2-i2v-a14b:fast", CONFIGS).preset == "fast"
    assert load_served("tiny:quality", CONFIGS).served_as == "tiny"
    with pytest.raises(ProfileError, match=r"model tiny has no preset 'fast'; it has quality"):
        load_served("tiny:fast", CONFIGS)
    with pytest.raises(ProfileError, match=r"model tiny has no preset ''"):
        load_served("tiny:", CONFIGS)


def test_a_model_that_cannot_run_is_not_served(tmp_path):
    write(tmp_path, 'cannot_run = "no code"\n' + GOOD)
    with pytest.raises(ProfileError, match="model mine cannot run yet: no code"):
        load_served("mine", tmp_path)


def test_profile_cannot_change():
    profile = load_profile("tiny", CONFIGS)
    with pytest.raises(AttributeError):
        profile.steps = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_front_end_modules_do_not_load_torch():
    code = (
        "import sys, wan_pipelines.profile, wan_pipelines.plan, wan_pipelines.sizes; sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root / "pipelines", check=True)
