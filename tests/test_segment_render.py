"""Videos of several samples through the three stages: what each is told, resumed anywhere, joined to one stream."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from callbacks import StopError, nothing, stop_at
from media_samples import make_clip, psnr, read_audio, read_video
from tiny_checkpoint import CONCAT, CONFIGS, ONE_PICTURE, TI2V, VACE, TinyModel, noise_image
from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.colour import Grade, Look, slid
from wan_pipelines.conditions import Known
from wan_pipelines.errors import RenderError
from wan_pipelines.footprint import bundled_configs, footprint
from wan_pipelines.framing import condition_image, visible
from wan_pipelines.load import load_checkpoint
from wan_pipelines.peaks import peak
from wan_pipelines.pixels import cover_crop, load_image
from wan_pipelines.placement import largest_plan
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import Profile, checkpoint_folder, load_profile
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.seams import BEGINS, END, GRADE, GRADES, LOOK, Before, Seam, first_look, join, slides
from wan_pipelines.segments import LATENTS, PREFIX, SVI
from wan_pipelines.tensorfile import read_metadata, save_tensors
from wan_pipelines.vae import decode_end, encode_frames, stream_decode

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
#: 2 s are two samples of at most 29 frames, 4 s three
NATIVE = 29
STEPS = (1.0, 0.7, 0.0)


def chained(profile: Profile, chaining: Literal["prefix", "latents"] = "latents") -> Profile:
    """The same model, which goes on from samples of so many frames."""
    return replace(profile, chaining=chaining, native_frames=NATIVE, fps=16, max_frames=241)


def long_plan(profile: Profile, seconds: int = 2, **changes: Any) -> RenderPlan:
    """64x64 in two steps; of the profile's own segments."""
    given: dict[str, Any] = {"media": ("first_frame",), "seed": 5, **changes}
    request = PlanRequest("a cat runs over wet grass, " * 9, "blurred; " * 9, "720P", 1.0, seconds, **given)
    return replace(make_plan(profile, request), width=64, height=64, sigmas=STEPS)


def renderer_of(model: TinyModel, chaining: Literal["prefix", "latents"] = "latents") -> Renderer:
    return Renderer(chained(model.profile, chaining), model.checkpoint, CPU, checkpoint_every_s=0)


@dataclass(frozen=True, slots=True)
class Work:
    """The files of a video in a folder."""

    renderer: Renderer
    plan: RenderPlan
    media: Media
    folder: Path

    def file(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}{number}"

    def encode(self, number: int, beat=nothing) -> Path:
        part, out = self.plan.parts[number], self.file("c", number)
        if number == 0:
            self.renderer.encode(part, self.media, out, beat)
        else:
            before = Before(self.file("c", 0), self.file("l", number - 1))
            self.renderer.go_on(part, self.media, before, out, beat)
        return out

    def denoise(self, number: int, on_step=nothing) -> Path:
        out = self.file("l", number)
        checkpoint = self.file("checkpoint", number)
        self.renderer.denoise(self.plan.parts[number], self.file("c", number), out, on_step, checkpoint)
        return out

    def make(self) -> list[dict[str, Tensor]]:
        """Every segment in turn; conditions and latents of each."""
        made = []
        for number in range(len(self.plan.parts)):
            made.append(load_file(self.encode(number)) | load_file(self.denoise(number)))
        return made

    def join(self) -> Path:
        out = self.folder / "joined"
        join(self.plan, [self.file("l", number) for number in range(len(self.plan.parts))], out)
        return out

    def frames(self) -> Tensor:
        """What is shown of the joined video, without changes of colour."""
        with torch.inference_mode():
            found = torch.cat(list(stream_decode(self.renderer.checkpoint.vae, load_file(self.join())["latents"])))
        return found[self.plan.prefix_frames :][: self.plan.frames - self.plan.clip_frames]


@pytest.fixture
def media(tmp_path) -> Media:
    noise_image(0).save(tmp_path / "first.png")
    noise_image(1).save(tmp_path / "last.png")
    return Media(tmp_path / "first.png", tmp_path / "last.png")


@pytest.fixture
def first_only(media) -> Media:
    return replace(media, last_frame=None)


@pytest.fixture
def work(tmp_path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize("spec", [CONCAT, TI2V, VACE])
def test_one_segment_is_the_plain_pipeline_to_the_last_bit(tiny, first_only, work, spec):
    model = tiny(spec)
    plain = Renderer(replace(model.profile, fps=16, max_frames=241), model.checkpoint, CPU)
    made = []
    for renderer in (plain, renderer_of(model)):
        plan = long_plan(renderer.profile, seconds=1)
        assert len(plan.segments) == (0 if renderer is plain else 1)
        assert plan.parts == (plan,)
        (tensors,) = Work(renderer, plan, first_only, work).make()
        renderer.decode(plan, work / "l0", work / "v.mp4", None, nothing)
        made.append((tensors, (work / "v.mp4").read_bytes()))
    assert made[0][0].keys() == made[1][0].keys()
    assert all(torch.equal(made[0][0][name], made[1][0][name]) for name in made[0][0])
    assert made[0][1] == made[1][1]


@pytest.mark.parametrize(("seconds", "count", "chaining"), [(2, 2, "latents"), (4, 3, "prefix")])
def test_segments_make_the_whole_video(tiny, first_only, work, seconds, count, chaining):
    renderer = renderer_of(tiny(CONCAT), chaining)
    job = Work(renderer, long_plan(renderer.profile, seconds), first_only, work)
    made = job.make()
    assert len(made) == count
    steps: list[tuple[int, int]] = []
    facts = renderer.decode(job.plan, job.join(), work / "v.mp4", None, lambda *args: steps.append(args))
    assert (facts.frames, facts.seconds) == (16 * seconds, float(seconds))
    assert steps[-1] == (16 * seconds, 16 * seconds)
    assert read_video(work / "v.mp4").shape == (16 * seconds, 64, 64, 3)
    noises = [part.seed for part in job.plan.parts]
    assert len(set(noises)) == count
    assert noises[0] == job.plan.seed


@torch.no_grad()
def test_a_segment_is_told_the_end_of_the_one_before(tiny, first_only, work):
    """Position 0 is the frame nine before the seam, encoded as a picture; 1 and 2 are the last latents; then grey."""
    renderer = renderer_of(tiny(CONCAT))
    job = Work(renderer, replace(long_plan(renderer.profile), chaining=replace(LATENTS, colour=0.0)), first_only, work)
    first, second = job.make()
    concat = second["concat"]
    rows = concat[0, :4, :, 0, 0].T.tolist()
    assert rows == [[1, 1, 1, 1]] * 3 + [[0, 0, 0, 0]] * (len(rows) - 3)
    assert torch.equal(concat[:, 4:, 1:3], first["latents"][:, :, -2:])
    decoded = torch.cat(list(decode_end(renderer.checkpoint.vae, first["latents"], 3)))
    seen = decoded[-9][:, None] * 2 - 1
    picture = encode_frames(renderer.checkpoint.vae, [seen[None]])
    assert (concat[:, 4:, :1] - picture).abs().max() < 1e-4
    grey = encode_frames(renderer.checkpoint.vae, [seen[None], *[torch.zeros(1, 3, 4, 64, 64)] * (len(rows) - 1)])
    assert (concat[:, 4:, 3:] - grey[:, :, 3:]).abs().max() < 1e-4
    assert torch.equal(second["prompt"], first["prompt"])
    assert torch.equal(second["negative"], first["negative"])


@torch.no_grad()
def test_a_prefix_is_all_of_the_overlap_encoded(tiny, first_only, work):
    renderer = renderer_of(tiny(CONCAT), "prefix")
    plan = long_plan(renderer.profile)
    job = Work(renderer, replace(plan, chaining=replace(PREFIX, colour=0.0)), first_only, work)
    first, second = job.make()
    frames = torch.cat(list(decode_end(renderer.checkpoint.vae, first["latents"], 3)))[-9:] * 2 - 1
    pixels = frames.transpose(0, 1)[None]
    chunks = [pixels[:, :, :1], *pixels[:, :, 1:].split(4, dim=2)]
    assert (second["concat"][:, 4:, :3] - encode_frames(renderer.checkpoint.vae, chunks)).abs().max() < 1e-4
    assert not torch.equal(second["concat"][:, 4:, 1:3], first["latents"][:, :, -2:])


def test_only_the_last_segment_is_told_the_last_frame(tiny, media, work):
    renderer = renderer_of(tiny(CONCAT))
    plan = long_plan(renderer.profile, 4, media=("first_frame", "last_frame"))
    made = Work(renderer, plan, media, work).make()
    assert [bool(tensors["concat"][0, 3, -1].all()) for tensors in made] == [False, False, True]
    assert len({tensors["concat"].shape[2] for tensors in made}) <= 2


def test_per_token_times_are_told_several_clean_latents(tiny, first_only, work):
    renderer = renderer_of(tiny(TI2V))
    _, second = Work(renderer, long_plan(renderer.profile), first_only, work).make()
    assert second["clean"].shape[2] == 3
    assert torch.equal(second["latents"][:, :, :3], second["clean"])


def test_a_text_goes_on_from_its_own_video(tiny, work):
    renderer = renderer_of(tiny(VACE))
    job = Work(renderer, long_plan(renderer.profile, media=()), Media(), work)
    first, second = job.make()
    assert bool(first["vace"][0, 32:].all())
    assert second["vace"][0, 32:, :3].any() == torch.tensor(False)
    assert torch.equal(second["vace"][:, 16:32, :1], first["vace"][:, 16:32, :1])  # grey stays grey
    assert LOOK in read_metadata(work / "l1")


def test_pictures_of_the_image_encoder_are_the_last_ones_shown(tiny, first_only, work):
    renderer = renderer_of(tiny(ONE_PICTURE))
    first, second = Work(renderer, long_plan(renderer.profile), first_only, work).make()
    assert first["image"].shape == second["image"].shape
    assert not torch.equal(first["image"], second["image"])


def test_an_anchor_and_zeros(tiny, first_only, work):
    """SVI: the picture that the video begins with, one latent of the segment before, zeros; one frame is known."""
    renderer = renderer_of(tiny(CONCAT))
    renderer = replace(renderer, profile=replace(renderer.profile, chaining="svi", prefix_frames=5))
    plan = make_plan(renderer.profile, PlanRequest("a cat", None, "720P", 1.0, 2, seed=5))
    made = Work(renderer, replace(plan, width=64, height=64, sigmas=STEPS), first_only, work).make()
    for tensors in made:
        known = tensors["concat"][0, :4, :, 0, 0].T.tolist()
        assert known == [[1, 1, 1, 1]] + [[0, 0, 0, 0]] * (len(known) - 1)
    first, second = (tensors["concat"][:, 4:] for tensors in made)
    assert torch.equal(first[:, :, :1], second[:, :, :1])
    assert torch.equal(second[:, :, 1:2], made[0]["latents"][:, :, -1:])
    assert not first[:, :, 1:].any()
    assert not second[:, :, 2:].any()
    assert SVI.colour == 0


def test_a_clip_and_a_last_frame(tiny, media, tmp_path, work):
    clip = make_clip(tmp_path / "a.mp4", (96, 96), 1.25, 24, audio=True)
    renderer = renderer_of(tiny(CONCAT))
    given = Media(None, media.last_frame, clip)
    plan = long_plan(renderer.profile, 3, media=("first_clip", "last_frame"), clip_seconds=1.25)
    job = Work(renderer, plan, given, work)
    made = job.make()
    assert len(made) > 1
    facts = renderer.decode(plan, job.join(), work / "v.mp4", clip, nothing, clip)
    assert facts.frames == 48
    own = [upright(frame) for frame in shown_frames(clip, 16, 20)]
    assert len(own) == plan.clip_frames == 20
    for frame, picture in zip(read_video(work / "v.mp4"), own, strict=False):  # never through the autoencoder
        assert psnr(frame, (cover_crop(picture, 64, 64) * 255).round().byte().permute(1, 2, 0).numpy()) > 30
    samples, rate = read_audio(work / "v.mp4")
    assert np.flatnonzero(np.abs(samples[0]) > 0.1)[-1] / rate == pytest.approx(1.25, abs=0.03)
    rows = made[0]["concat"][0, :4, :, 0, 0].T.tolist()
    assert rows[:5] == [[1, 1, 1, 1]] * 5
    assert rows[-1] == [0, 0, 0, 0]
    assert bool(made[-1]["concat"][0, 3, -1].all())


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_it_goes_on_in_the_segment_where_it_was(tiny, first_only, tmp_path, number, at):
    renderer = renderer_of(tiny(CONCAT))
    plan = long_plan(renderer.profile, 4)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = Work(renderer, plan, first_only, tmp_path / "whole")
    expected = whole.make()
    cut = Work(renderer, plan, first_only, tmp_path / "cut")
    for done in range(number):
        cut.encode(done)
        cut.denoise(done)
    cut.encode(number)
    with pytest.raises(StopError):
        cut.denoise(number, stop_at(at))
    steps: list[tuple[int, int]] = []
    for rest in range(number, 3):
        if rest > number:
            cut.encode(rest)
        cut.denoise(rest, lambda *args: steps.append(args))
    assert len(steps) == (2 - at) + 2 * (2 - number)
    for index, tensors in enumerate(expected):
        assert torch.equal(load_file(cut.file("l", index))["latents"], tensors["latents"])


def test_a_segment_can_be_made_again_alone(tiny, first_only, work):
    renderer = renderer_of(tiny(CONCAT))
    job = Work(renderer, long_plan(renderer.profile, 4), first_only, work)
    expected = job.make()
    for path in (job.file("c", 1), job.file("l", 1), job.file("checkpoint", 1)):
        path.unlink(missing_ok=True)
    with pytest.raises(StopError):
        job.encode(1, stop_at(2))
    assert not job.file("c", 1).exists()
    again = load_file(job.encode(1)) | load_file(job.denoise(1))
    assert all(torch.equal(again[name], expected[1][name]) for name in again)


def test_a_checkpoint_of_another_beginning_is_ignored(tiny, first_only, work):
    renderer = renderer_of(tiny(CONCAT))
    job = Work(renderer, long_plan(renderer.profile), first_only, work)
    job.make()
    job.file("checkpoint", 1).unlink()
    with pytest.raises(StopError):
        job.denoise(1, stop_at(1))
    other = load_file(job.file("l", 0))["latents"] + 0.1
    save_tensors(job.file("l", 0), {"latents": other}, read_metadata(job.file("l", 0)))
    job.encode(1)
    steps: list[tuple[int, int]] = []
    job.denoise(1, lambda *args: steps.append(args))
    assert len(steps) == 2


def test_several_segments_at_once_and_segments_of_another_plan_are_refused(tiny, first_only, work):
    renderer = renderer_of(tiny(CONCAT))
    job = Work(renderer, long_plan(renderer.profile), first_only, work)
    with pytest.raises(RenderError, match="the plan has 2 segments, which are made one by one"):
        renderer.encode(job.plan, first_only, work / "c0", nothing)
    job.make()
    with pytest.raises(RenderError, match="l1 was made for another plan"):
        join(job.plan, [work / "l1", work / "l0"], work / "joined")
    with pytest.raises(RenderError, match="not that of a segment that goes on"):
        renderer.go_on(job.plan.parts[0], first_only, Before(work / "c0", work / "l0"), work / "c", nothing)


@torch.inference_mode()
def test_a_segment_is_told_the_colours_that_are_shown(tmp_path):
    """A still picture that grows brighter behind its first frame, in the first of two segments."""
    profile = load_profile("tiny", CONFIGS)
    vae = load_checkpoint(profile, checkpoint_folder(profile, CONFIGS, CONFIGS), CPU, None).vae
    plan = make_plan(profile, PlanRequest("", None, "720P", 16 / 9, 6, seed=1, media=("first_frame",)))
    first, second = plan.parts
    picture = condition_image(load_image(CONFIGS / "samples" / "coffee.jpg"), plan)
    brighter = torch.linspace(0, 0.08, 5).repeat(first.sample_frames)[: first.sample_frames]
    brighter[5:] = 0.08  # of a range of 2
    pixels = (picture[:, None] * 0.8 + brighter.view(-1, 1, 1))[None]
    latents = encode_frames(vae, [pixels[:, :, :1], *pixels[:, :, 1:].split(4, dim=2)])
    begins = first_look(plan, Known(prefix=pixels[0].transpose(0, 1)[:1], last=None, frames=first.sample_frames))
    save_tensors(tmp_path / "l0", {"latents": latents}, begins)
    seam = Seam(second, vae, CPU, lambda _: nullcontext())
    known, colours = seam.known(Before(tmp_path / "c0", tmp_path / "l0"), None, nothing)
    told = visible(known.prefix / 2 + 0.5, plan)
    decoded = visible(torch.cat(list(stream_decode(vae, latents))), plan)[: first.frames]
    noted = {GRADES: f"[{colours[GRADE]}]", BEGINS: begins[END]}
    shown = torch.cat(list(slid(iter([decoded]), 0, slides(plan, noted))))
    assert (shown[-9:] - told).abs().max() < 0.01
    drift, without = ((frames.mean((2, 3)) - frames[0].mean((1, 2))).abs().max() for frames in (shown, decoded))
    assert drift < 0.02
    assert without > 0.03


def test_the_seam_is_one_stream(tiny, first_only, work):
    """Frames at a seam are decoded with all that came before, not from a fresh start."""
    renderer = renderer_of(tiny(CONCAT))
    job = Work(renderer, long_plan(renderer.profile), first_only, work)
    made = job.make()
    joined = load_file(job.join())["latents"]
    new = job.plan.segments[1].new_latents
    assert torch.equal(joined, torch.cat([made[0]["latents"], made[1]["latents"][:, :, new.start :]], dim=2))
    assert len(job.frames()) == 32


def test_colours_slide_to_what_the_next_segment_begins_with(tiny, first_only, work):
    renderer = renderer_of(tiny(CONCAT))
    job = Work(renderer, long_plan(renderer.profile), first_only, work)
    job.make()
    metadata = read_metadata(work / "l1")
    grade = Grade((1.0, 1.0, 1.0), (0.1, 0.0, -0.1))
    save_tensors(work / "l1", load_file(work / "l1"), {**metadata, GRADE: json.dumps(grade.to_json())})
    renderer.decode(job.plan, job.join(), work / "v.mp4", None, nothing)
    plain = job.frames()
    found = torch.tensor(read_video(work / "v.mp4")).permute(0, 3, 1, 2) / 255
    shift = (found - plain).mean(dim=(2, 3))
    seam = job.plan.segments[1].start
    assert shift[seam - 1, 0] - shift[0, 0] > 0.05
    assert shift[seam - 1, 2] - shift[0, 2] < -0.05
    assert shift[seam:].abs().max() < 0.03


def test_carried_latents_change_with_the_colours(tiny, first_only, work):
    renderer = renderer_of(tiny(CONCAT))
    job = Work(renderer, long_plan(renderer.profile), first_only, work)
    job.make()
    metadata = read_metadata(work / "l0")
    look = Look.from_json(json.loads(metadata[LOOK]))
    told = load_file(work / "c1")["concat"][:, 4:, 1:3]
    frames = torch.cat(list(decode_end(renderer.checkpoint.vae, load_file(work / "l0")["latents"], 3)))[-9:]
    found = Look.of(frames)
    near = Look(tuple(value + 0.03 for value in found.mean), found.deviation)
    save_tensors(work / "l0", load_file(work / "l0"), {**metadata, LOOK: json.dumps(near.to_json())})
    job.encode(1)
    changed = load_file(work / "c1")["concat"][:, 4:, 1:3]
    grade = Grade.from_json(json.loads(read_metadata(work / "c1")[GRADE]))
    assert grade.changes
    assert grade.offset == pytest.approx((0.5 * 0.03 * (1 - 0.03 / 0.12),) * 3, rel=1e-3)
    assert (changed - told).abs().max() > 0
    assert look != near


@pytest.mark.parametrize("name", ["wan2.2-i2v-a14b", "wan2.2-ti2v-5b", "wan2.1-vace-14b"])
def test_longer_videos_take_no_more_memory_but_for_their_latents(name):
    profile = load_profile(name, CONFIGS)
    needs = footprint(bundled_configs(profile, CONFIGS), profile, "bfloat16")
    ten, fifteen = (peak(needs, largest_plan(profile, seconds=seconds), "resident") for seconds in (10, 15))
    for stage in ("text", "encode", "denoise"):
        assert ten.by_stage[stage].activations >= fifteen.by_stage[stage].activations * 0.9
    latents = fifteen.by_stage["decode"].activations - ten.by_stage["decode"].activations
    assert 0 < latents < 3 * 2**27


def test_decoding_holds_a_chunk_of_pixels_at_a_time(tiny, first_only, work):
    """No tensor of more than four frames of pixels comes out of the decoder or goes into the file."""
    renderer = renderer_of(tiny(CONCAT))
    job = Work(renderer, long_plan(renderer.profile, 4), first_only, work)
    job.make()
    sizes: list[int] = []
    hook = renderer.checkpoint.vae.decoder.register_forward_hook(lambda *args: sizes.append(args[2].shape[2]))
    done: list[int] = []
    renderer.decode(job.plan, job.join(), work / "v.mp4", None, lambda now, _: done.append(now))
    hook.remove()
    assert max(sizes) == 4
    assert len(sizes) == 17
    assert max(after - before for before, after in pairwise(done)) == 4
