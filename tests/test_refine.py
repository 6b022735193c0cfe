"""1080P in two passes: what is planned, where latents go, and that the second pass is a denoise like any other."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from callbacks import StopError, nothing, stop_at
from live_memory import LiveMemory
from media_samples import make_image, read_video
from queue_fixtures import make_job, make_settings
from tiny_checkpoint import CONCAT, CONFIGS, TI2V, TWO_EXPERTS, noise_image, small_plan
from wan_pipelines.errors import ProfileError, RenderError
from wan_pipelines.framing import condition_image, visible
from wan_pipelines.hd import Refine, Refinement, second_seed
from wan_pipelines.noise_levels import flow_sigmas, shifted, unshifted
from wan_pipelines.pixels import load_image
from wan_pipelines.plan import PlanRequest, RenderPlan, beyond_training, make_plan
from wan_pipelines.profile import Profile, checkpoint_folder, load_profile, load_served
from wan_pipelines.refine import enlarge, enlarged, noised
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.tensorfile import load_tensors
from wan_pipelines.vae import encode_frames, stream_decode
from wan_pipelines.vae_memory import decode_bytes, encode_bytes
from wan_server.files import FileStore
from wan_server.progress import Pace, Reporter
from wan_server.renderers import Renderers
from wan_server.stages import FINE, LATENTS, Stages
from wan_server.workflow import pass_shares, shares

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
#: begins below the boundary of the miniature, 0.9
LEVELS = flow_sigmas("unipc", 3, 5.0, unshifted(0.8, 5.0))


def renderer_of(model) -> Renderer:
    return Renderer(model.profile, model.checkpoint, CPU, checkpoint_every_s=0)


def two_passes(profile: Profile, **changes) -> RenderPlan:
    """64x64 refined to 96x96, of which the middle 90 lines are shown, as 1080 of 1088."""
    size = {"width": 96, "height": 90, "sample_width": 96, "sample_height": 96}
    counts = {"frames": 5, "sample_frames": 5}
    return small_plan(profile, **{**size, **counts, "refine": Refine(64, 64, LEVELS), **changes})


def picture(folder: Path) -> Media:
    noise_image(0, 96, 90).save(folder / "first.png")
    return Media(folder / "first.png")


def latents_of(path: Path) -> torch.Tensor:
    return load_tensors(path, CPU)["latents"]


def first_pass(renderer: Renderer, plan: RenderPlan, media: Media, work: Path) -> Path:
    """Everything before the second denoise. Returns what that one begins with."""
    renderer.encode(plan.passes[0], media, work / "conditioning", nothing)
    renderer.denoise(plan.passes[0], work / "conditioning", work / "small", nothing)
    renderer.encode(plan.passes[1], media, work / "fine-conditioning", nothing)
    enlarge(renderer, plan.passes[1], work / "small", work / "begun", nothing)
    return work / "begun"


def planned(model: str, resolution: str = "1080P", **changes) -> RenderPlan:
    profile = load_served(model, CONFIGS)
    media = ("first_frame", *profile.needs) if profile.inputs else ()
    request = PlanRequest("", None, resolution, 16 / 9, 5, seed=1, media=tuple(dict.fromkeys(media)))
    return make_plan(profile, replace(request, **changes))


@pytest.mark.parametrize(
    ("model", "small", "steps"),
    [
        ("wan2.2-i2v-a14b", (1280, 720), 10),
        ("wan2.2-i2v-a14b:fast", (1280, 720), 1),
        ("wan2.2-t2v-a14b", (1280, 720), 5),
        ("wan2.1-vace-14b", (1280, 720), 5),
        ("wan2.2-ti2v-5b", (1280, 736), 12),
    ],
)
def test_1080p_refines_720p_by_default(model, small, steps):
    plan = planned(model)
    first, last = plan.passes
    assert (first.width, first.height) == (last.width, last.height) == (1920, 1080)
    assert (first.sample_width, first.sample_height) == small
    assert first.visible_size == (1280, 720)
    assert (last.sample_width, last.sample_height, last.visible_size) == (1920, 1088, (1920, 1080))
    assert first.sigmas == plan.sigmas == planned(model, "720P").sigmas
    assert (last.sigmas[-1], last.steps) == (0, steps)
    assert last.sigmas[0] == 0.625
    assert last.boundary is None or last.sigmas[0] < last.boundary
    assert RenderPlan.from_json(plan.to_json()) == plan
    assert len({plan.key, first.key, last.key}) == 3


def test_the_distilled_weights_refine_at_a_level_they_know():
    whole, rest = planned("wan2.2-i2v-a14b:fast").sigmas, planned("wan2.2-i2v-a14b:fast").passes[1].sigmas
    assert rest == pytest.approx(whole[-2:])


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("wan2.2-i2v-a14b", {"resolution": "720P"}),
        ("wan2.2-i2v-a14b", {"hd_route": "direct"}),
        ("wan2.1-t2v-1.3b", {"hd_route": "refine"}),
        ("wan2.2-s2v-14b", {"media": ("first_frame", "driving_audio")}),
        ("tiny", {"hd_route": "refine"}),
    ],
)
def test_everything_else_is_one_pass(model, changes):
    plan = planned(model, **changes)
    assert (plan.refine, plan.passes) == (None, (plan,))


def test_the_default_is_the_profiles_and_a_wish_goes_before_it():
    profile = load_profile("wan2.2-i2v-a14b", CONFIGS)
    other = replace(profile, refinement=Refinement(0.625, 10, default=False))
    request = PlanRequest("", None, "1080P", 4 / 3, 5, seed=1)
    assert make_plan(other, request).refine is None
    assert make_plan(other, replace(request, hd_route="refine")) == make_plan(profile, request)


def test_other_shapes_show_the_same_window_at_both_sizes():
    for aspect in (4 / 3, 1.0, 3 / 2, 8.0, 0.4):
        first, last = planned("wan2.2-i2v-a14b", aspect=aspect).passes
        ratio = (last.visible_size[0] / first.visible_size[0], last.visible_size[1] / first.visible_size[1])
        assert ratio[0] == pytest.approx(ratio[1], rel=0.005)
        assert last.visible_size == (last.width, last.height)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refinement": Refinement(0.9, 5)}, r"strength must be below boundary 0\.9"),
        ({"sample_pixels": 16384}, "cannot be given with sample_pixels"),
    ],
)
def test_a_profile_that_cannot_refine_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(load_profile("wan2.2-i2v-a14b", CONFIGS), **changes)


def test_a_bad_table_names_its_key(tmp_path):
    (tmp_path / "models").mkdir()
    text = (CONFIGS / "models" / "wan2.2-ti2v-5b.toml").read_text()
    (tmp_path / "models" / "a.toml").write_text(text.replace("strength = 0.625", "strength = 1.8"))
    with pytest.raises(ProfileError, match=r"refinement\.strength: .*less than 1 \(got 1\.8\)"):
        load_profile("a", tmp_path)


def test_levels_are_as_far_apart_as_those_of_the_whole():
    assert unshifted(shifted([0.4], 5.0)[0], 5.0) == pytest.approx(0.4)
    whole, rest = planned("wan2.2-i2v-a14b").sigmas, planned("wan2.2-i2v-a14b").passes[1].sigmas
    gaps = [[unshifted(a, 5.0) - unshifted(b, 5.0) for a, b in pairwise(s)] for s in (whole, rest)]
    assert gaps[0][0] == pytest.approx(gaps[1][0], rel=0.03)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Renderer:
    profile = load_profile("tiny", CONFIGS)
    return Renderer.load(profile, checkpoint_folder(profile, tmp_path_factory.mktemp("weights"), CONFIGS), "cpu")


def test_what_was_small_is_in_its_place_when_it_is_large(shipped):
    """Through the embedded autoencoder, 90 of 96 lines become 135 of 144; a few lines off would be seen."""
    plan = make_plan(shipped.profile, PlanRequest("", None, "720P", 16 / 9, 1, seed=1))
    large = replace(plan, sample_width=240, sample_height=144)
    coffee, vae = load_image(CONFIGS / "samples" / "coffee.jpg"), shipped.checkpoint.vae
    with torch.inference_mode():
        small = encode_frames(vae, [condition_image(coffee, plan)[None, :, None]])
        latents = enlarged(vae, small, large, nothing)
        seen = visible(next(stream_decode(vae, latents)), large)[0]
    wanted = visible(condition_image(coffee, large)[None], large)[0] / 2 + 0.5
    assert latents.shape[-2:] == (18, 30)
    assert seen.shape == wanted.shape == (3, 135, 240)

    def error(rows: int, columns: int) -> float:
        moved = seen.roll((rows, columns), dims=(1, 2))
        return float((moved - wanted)[:, 8:-8, 8:-8].pow(2).mean())

    errors = {(rows, columns): error(rows, columns) for rows in (-2, 0, 2) for columns in (-2, 0, 2)}
    assert min(errors, key=lambda moved: errors[moved]) == (0, 0)
    assert errors[0, 0] < 0.005


def test_a_clip_is_enlarged_frame_by_frame_and_can_be_stopped(shipped):
    plan = make_plan(shipped.profile, PlanRequest("", None, "720P", 16 / 9, 1, seed=1))
    large = replace(plan, sample_width=240, sample_height=144)
    z = shipped.checkpoint.vae.config["z_dim"]
    small = torch.randn(1, z, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    beats: list[None] = []
    with torch.inference_mode():
        made = enlarged(shipped.checkpoint.vae, small, large, lambda: beats.append(None))
    assert made.shape == (1, z, 3, 18, 30)
    assert len(beats) == 2 * 3  # decoded, encoded
    with pytest.raises(StopError):
        enlarged(shipped.checkpoint.vae, small, large, stop_at(1))


@pytest.mark.parametrize("latent_frames", [3, 9])
def test_enlarging_asks_for_what_is_predicted_however_long_the_video(tiny, latent_frames):
    renderer = renderer_of(tiny(CONCAT))
    vae, plan = renderer.checkpoint.vae, two_passes(renderer.profile).passes[1]
    small = torch.zeros(1, vae.config["z_dim"], latent_frames, 4, 4)
    with torch.inference_mode(), LiveMemory([*vae.parameters(), small]) as live:
        enlarged(vae, small, plan, nothing)
    frames, size = 4 * latent_frames - 3, (plan.sample_width, plan.sample_height)
    waiting = 3 * frames * 64 * 64  # bytes that are not on the device where there is one
    config = dict(vae.config)
    predicted = max(decode_bytes(config, 64, 64, latent_frames), encode_bytes(config, *size, 4, frames))
    assert live.peak - waiting == pytest.approx(predicted, rel=0.25)


def test_noise_and_sample_are_mixed_by_the_level():
    _, last = planned("wan2.2-i2v-a14b").passes
    noise = torch.randn(1, 2, 3, 136, 240, generator=torch.Generator().manual_seed(0))
    begun = noised(torch.ones(1, 2, 3, 136, 240), last, noise)
    assert torch.allclose(begun, 0.375 + 0.625 * noise, atol=1e-5)
    with pytest.raises(RenderError, match="cannot be refined"):
        noised(torch.ones(1, 2, 3, 90, 160), last, noise)


def test_without_noise_the_enlarged_sample_comes_out(tiny, tmp_path):
    renderer = renderer_of(tiny(CONCAT))
    plan = two_passes(renderer.profile, sampler="euler", refine=Refine(64, 64, (0.0,)))
    begun = first_pass(renderer, plan, picture(tmp_path), tmp_path)
    renderer.denoise(plan.passes[1], tmp_path / "fine-conditioning", tmp_path / "out", nothing, None, begun)
    assert torch.equal(latents_of(tmp_path / "out"), latents_of(begun))


def test_only_the_low_noise_expert_refines(tiny, tmp_path):
    renderer = renderer_of(tiny(TWO_EXPERTS))
    plan = two_passes(renderer.profile)
    begun = first_pass(renderer, plan, picture(tmp_path), tmp_path)
    experts, called = renderer.checkpoint.experts, []
    assert experts.low is not None
    hooks = [
        expert.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, expert in (("high", experts.high), ("low", experts.low))
    ]
    renderer.denoise(plan.passes[1], tmp_path / "fine-conditioning", tmp_path / "out", nothing, None, begun)
    for hook in hooks:
        hook.remove()
    assert called == ["low"] * 2 * plan.passes[1].steps
    assert latents_of(tmp_path / "out").shape[-2:] == (6, 6)


def test_refinement_goes_on_from_its_checkpoint_bit_for_bit(tiny, tmp_path):
    renderer = renderer_of(tiny(TWO_EXPERTS))
    plan = two_passes(renderer.profile)
    begun = first_pass(renderer, plan, picture(tmp_path), tmp_path)
    told, last = tmp_path / "fine-conditioning", plan.passes[1]
    renderer.denoise(last, told, tmp_path / "whole", nothing, None, begun)
    with pytest.raises(StopError):
        renderer.denoise(last, told, tmp_path / "out", stop_at(2), tmp_path / "mark", begun)
    seen: list[int] = []
    renderer.denoise(last, told, tmp_path / "out", lambda done, _: seen.append(done), tmp_path / "mark", begun)
    assert seen == [3]
    assert torch.equal(latents_of(tmp_path / "out"), latents_of(tmp_path / "whole"))


def test_the_sample_and_its_noise_both_count(tiny, tmp_path):
    renderer = renderer_of(tiny(CONCAT))
    plan = two_passes(renderer.profile)
    begun = first_pass(renderer, plan, picture(tmp_path), tmp_path)
    told, made = tmp_path / "fine-conditioning", []
    for number, (last, start) in enumerate([(plan.passes[1], begun), (plan.passes[1], None)]):
        renderer.denoise(last, told, tmp_path / str(number), nothing, None, start)
        made.append(latents_of(tmp_path / str(number)))
    assert not torch.allclose(made[0], made[1])
    assert second_seed(5) != 5
    assert 0 <= second_seed(2**31 - 1) < 2**31


def test_conditions_are_those_of_the_large_size(tiny, tmp_path):
    """The first frame is told as sharply as when everything is sampled at that size."""
    renderer, media = renderer_of(tiny(CONCAT)), picture(tmp_path)
    plan = two_passes(renderer.profile)
    renderer.encode(plan.passes[1], media, tmp_path / "second", nothing)
    renderer.encode(replace(plan, refine=None), media, tmp_path / "direct", nothing)
    second, direct = (load_tensors(tmp_path / name, CPU) for name in ("second", "direct"))
    assert second.keys() == direct.keys()
    assert all(torch.equal(second[name], direct[name]) for name in second)


def test_a_frame_without_noise_stays_what_it_is(tiny, tmp_path):
    renderer = renderer_of(tiny(TI2V))
    plan = two_passes(renderer.profile)
    begun = first_pass(renderer, plan, picture(tmp_path), tmp_path)
    renderer.denoise(plan.passes[1], tmp_path / "fine-conditioning", tmp_path / "out", nothing, None, begun)
    clean = load_tensors(tmp_path / "fine-conditioning", CPU)["clean"]
    assert torch.equal(latents_of(tmp_path / "out")[:, :, :1], clean)


@pytest.fixture
def stages(tiny, tmp_path) -> Stages:
    settings = make_settings(tmp_path / "data", hd_route="refine")
    settings.data_dir.mkdir()
    return Stages(settings, FileStore(settings), Renderers({"tiny": renderer_of(tiny(TWO_EXPERTS))}))


def report(phase: str, said: list | None = None) -> Reporter:
    return Reporter(phase, nothing if said is None else said.append, nothing, Pace())


def refined(stages: Stages, plan: RenderPlan, picture: Path, stop: pytest.MonkeyPatch | None) -> tuple:
    """A job after its second pass, which is stopped after two steps and taken up again if told so, and what it said."""
    file = stages.files.ingest(picture, filename="a.png", content_type=None)
    job = make_job(input={"prompt": "", "resolution": "1080P", "duration": 1}, files={"first_frame": file.id})
    prepared, said = {"files": job.files, "probes": {}}, []
    stages.encode(job, plan.passes[0], prepared, report("encode"))
    stages.denoise(job, plan.passes[0], report("denoise"))
    if stop:
        with stop.context() as patched:
            patched.setattr(Reporter, "step", stop_at(2))
            with pytest.raises(StopError):
                stages.refine(job, plan.passes[1], prepared, report("denoise"))
    stages.refine(job, plan.passes[1], prepared, report("denoise", said))
    return job, said


def test_the_stages_make_both_passes_and_take_the_second_up_again(stages, tmp_path, monkeypatch):
    picture = make_image(tmp_path / "a.png", (96, 90), "PNG")
    plan, made = two_passes(stages.renderers.profile("tiny")), []
    for stop in (None, monkeypatch):
        job, said = refined(stages, plan, picture, stop)
        assert stages.files.scratch_get(job.id, FINE + LATENTS, tmp_path / "latents")
        made.append(latents_of(tmp_path / "latents"))
        assert said[-1].text.startswith("refining: 3 of 3")
        assert (said[0].step == 3) == (stop is not None)
    assert torch.equal(*made)
    decoded = stages.decode(job, plan, {"files": {}, "probes": {}}, report("decode"))
    with stages.files.local(decoded["file"]) as video:
        assert read_video(video).shape == (5, 90, 96, 3)


def test_the_setting_reaches_the_plan(stages):
    """The miniature has one size only, so the wish for another route is for nothing."""
    job = make_job(input={"prompt": "", "resolution": "1080P", "duration": 2})
    plain = {"prompt": "", "requested": False, "applied": False, "model": None, "note": None}
    assert stages.plan(job, {"probes": {}}, plain).refine is None


def test_progress_is_shared_by_the_work_of_the_passes():
    first, second = pass_shares(planned("wan2.2-i2v-a14b"))
    assert (first.starts, second.ends) == (0, 1)
    assert first.ends == second.starts == pytest.approx(40 * 6523 / (40 * 6523 + 10 * 28226), abs=0.005)
    assert pass_shares(planned("tiny"))[0].ends == 1


def test_refining_beyond_the_trained_size_is_told():
    profile = load_profile("wan2.2-i2v-a14b", CONFIGS)
    (note,) = beyond_training(profile, planned("wan2.2-i2v-a14b"))
    assert note.endswith("was trained on up to 1280x720 and refined details at 1920x1088")
    (direct,) = beyond_training(profile, planned("wan2.2-i2v-a14b", hd_route="direct"))
    assert direct.endswith("worked at 1920x1088; things may be doubled or blurred")


def test_segments_are_refined_one_after_the_other(stages, tmp_path):
    """Two segments, two passes: the second segment's refinement is told of the first one's."""
    profile = replace(stages.renderers.profile("tiny"), chaining="prefix", native_frames=17, prefix_frames=5)
    whole = make_plan(profile, PlanRequest("", None, "720P", 96 / 90, 2, seed=1))
    size = {"width": 96, "height": 90, "sample_width": 96, "sample_height": 96}
    plan = replace(whole, **size, sigmas=(1.0, 0.8, 0.0), refine=Refine(64, 64, LEVELS))
    assert len(plan.segments) > 1
    first, last = plan.passes
    assert RenderPlan.from_json(plan.to_json()) == plan
    file = stages.files.ingest(make_image(tmp_path / "a.png", (96, 90), "PNG"), filename="a.png", content_type=None)
    job = make_job(input={"prompt": "", "resolution": "1080P", "duration": 2}, files={"first_frame": file.id})
    prepared = {"files": job.files, "probes": {}}
    stages.encode(job, first.parts[0], prepared, report("encode"))
    for part in first.parts:
        if part.number:
            stages.go_on(job, part, prepared, report("denoise"))
        stages.denoise(job, part, report("denoise"))
    for part in last.parts:
        told = stages.refine(job, part, prepared, report("denoise"))
        assert ("colour" in told) == (part.number > 0)
    shared = [shares(each, share) for each, share in zip(plan.passes, pass_shares(plan), strict=True)]
    bounds = [(share.starts, share.ends) for each in shared for _, share in each]
    assert (bounds[0][0], bounds[-1][1]) == pytest.approx((0, 1))
    assert all(a[1] == pytest.approx(b[0]) for a, b in pairwise(bounds))
    decoded = stages.decode(job, plan, prepared, report("decode"))
    with stages.files.local(decoded["file"]) as video:
        assert read_video(video).shape == (32, 90, 96, 3)
