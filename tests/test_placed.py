"""A checkpoint is kept as the memory allows, from its load on. There is no GPU here: free memory is made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from callbacks import nothing
from tiny_checkpoint import CONFIGS, TEXT, TWO_EXPERTS, TinyModel, noise_image, small_plan
from wan_pipelines import fitting, placed
from wan_pipelines.errors import CheckpointError, PlacementError
from wan_pipelines.footprint import Footprint, bundled_configs, footprint
from wan_pipelines.load import PartCache, find_parts
from wan_pipelines.offload import Keeper, parts_of
from wan_pipelines.placed import LoadOptions, load_placed, predict
from wan_pipelines.placement import HOST_RESERVE, choose, largest_plan
from wan_pipelines.preset import LoraFile
from wan_pipelines.profile import list_profiles
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.weights.quantised import KeptLinear

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
PLENTY = 10**12
RUNNABLE = [p for p in list_profiles(CONFIGS) if p.architecture and not p.cannot_run]


def load(model: TinyModel, **options) -> Renderer:
    return Renderer.load(model.profile, model.folder, "cpu", options=LoadOptions(**options))


def predicted_of(model: TinyModel) -> Footprint:
    return predict(model.profile, model.folder, find_parts(model.profile, model.folder, None)[1], "float32")


def codes_in(module: torch.nn.Module) -> bool:
    return any(isinstance(part, KeptLinear) for part in module.modules())


def test_without_a_gpu_everything_is_resident_and_the_report_says_so(tiny, tmp_path):
    model = tiny(TWO_EXPERTS)
    renderer = load(model)
    assert renderer.placed is not None
    assert renderer.placed.placement.mode == "resident"
    noise_image(0).save(tmp_path / "first.png")
    report = renderer.encode(small_plan(model.profile), Media(tmp_path / "first.png"), tmp_path / "c", nothing)
    assert report.placement is not None
    assert report.placement["mode"] == "resident"
    assert set(report.placement["stages"]) == {"text", "encode", "denoise", "decode"}


def test_the_prediction_from_headers_is_what_is_loaded(tiny):
    model = tiny(TWO_EXPERTS)
    predicted = predicted_of(model)
    renderer = load(model)
    assert renderer.placed is not None
    for name, part in renderer.placed.footprint.parts.items():
        buffers = sum(buffer.nbytes for buffer in parts_of(renderer.checkpoint)[name].buffers())
        assert part.bytes == predicted.parts[name].bytes + buffers
    assert (predicted.fp8, renderer.placed.footprint.fp8) == (None, False)


def test_fp8_is_made_when_it_is_wished_for(tiny):
    renderer = load(tiny(TWO_EXPERTS), placement="fp8_offload_parts")
    experts = renderer.checkpoint.experts
    assert experts.low is not None
    assert codes_in(experts.high)
    assert codes_in(experts.low)
    assert not codes_in(renderer.checkpoint.text_encoder)
    assert renderer.placed is not None
    assert renderer.placed.keeper.residence == "offload_parts"


def test_weights_that_do_not_fit_into_host_memory_are_not_loaded(tiny, monkeypatch):
    model = tiny(TWO_EXPERTS)
    size = sum(part.bytes for part in predicted_of(model).parts.values())
    monkeypatch.setattr(placed, "free_host", lambda: size - 1)
    monkeypatch.setattr(placed, "load_checkpoint", nothing)
    with pytest.raises(PlacementError, match=r"its weights take 0\.\d GB of host memory, where 0\.\d GB are free"):
        load(model)


def test_too_little_memory_for_a_second_of_video_stops_the_load(tiny, monkeypatch):
    monkeypatch.setattr(placed, "free_device", lambda _: 10**6)
    monkeypatch.setattr(placed, "load_checkpoint", nothing)
    with pytest.raises(
        PlacementError, match=r"not enough memory for .*free are 0\.0 GB on the device .*; resident needs"
    ):
        load(tiny(TWO_EXPERTS))


def test_a_model_that_rests_makes_room_for_the_next_one(tiny, monkeypatch):
    first, second = tiny(TWO_EXPERTS), tiny(TEXT)
    options = LoadOptions()
    one = load_placed(first.profile, first.folder, CPU, options)
    room = [10**6]
    monkeypatch.setattr(placed, "free_device", lambda _: room[0])
    monkeypatch.setattr(Keeper, "rest", lambda self: room.append(room.pop() + PLENTY) if self is one.keeper else None)
    two = load_placed(second.profile, second.folder, CPU, options)
    assert options.neighbours == [one, two]
    assert two.placement.mode == "resident"


def test_a_job_that_does_not_fit_is_refused_before_it_begins(tiny, tmp_path, monkeypatch):
    model = tiny(TWO_EXPERTS)
    renderer = load(model)
    noise_image(0).save(tmp_path / "first.png")
    monkeypatch.setattr(fitting, "free_device", lambda _: 10**6)
    monkeypatch.setattr(Keeper, "on_device", lambda *_, **__: 0)
    with pytest.raises(PlacementError, match=r"64x64 and 9 frames .*; offload_layers needs \d"):
        renderer.encode(small_plan(model.profile), Media(tmp_path / "first.png"), tmp_path / "c", nothing)
    assert not (tmp_path / "c").exists()


def test_models_with_the_same_text_encoder_share_it(tiny):
    model, options = tiny(TWO_EXPERTS), LoadOptions(parts=PartCache())
    one, two = (load_placed(model.profile, model.folder, CPU, options) for _ in range(2))
    assert one.checkpoint.text_encoder is two.checkpoint.text_encoder
    assert one.checkpoint.vae is two.checkpoint.vae
    assert one.checkpoint.experts.high is not two.checkpoint.experts.high


@pytest.mark.parametrize("profile", RUNNABLE, ids=lambda profile: profile.name)
def test_profiles_state_the_memory_that_is_computed(profile):
    counted = footprint(bundled_configs(profile, CONFIGS), profile, "bfloat16")
    plan = largest_plan(profile)

    def gib(mode: str) -> float:
        return choose(counted, plan, PLENTY, None, mode).verdicts[-1].device / 2**30

    assert 0 <= profile.gpu_gib - gib("resident") < 1
    assert 0 <= profile.gpu_gib_least - min(gib("offload_parts"), gib("offload_layers")) < 1


def test_a_wish_for_what_the_weights_are_not_is_refused(tiny):
    model = tiny(TWO_EXPERTS)
    renderer = load(model)
    assert renderer.placed is not None
    wishful = replace(renderer.placed, wish="fp8")
    with pytest.raises(PlacementError, match="fp8 cannot be, the weights of model tiny are in full precision"):
        wishful.fit(small_plan(model.profile))


def test_on_a_gpu_host_memory_counts_too(tiny, monkeypatch):
    """The weights are converted on their way, so the largest part must fit into host memory once."""
    monkeypatch.setattr(placed, "free_device", lambda _: PLENTY)
    monkeypatch.setattr(placed, "free_host", lambda: HOST_RESERVE)
    with pytest.raises(PlacementError, match=r"and 2\.1 GB of host memory; resident needs \d\.\d GB of host memory"):
        load(tiny(TWO_EXPERTS), dtype="bfloat16")


def test_weights_that_need_no_conversion_pass_through_host_memory_without_taking_any(tiny, monkeypatch):
    monkeypatch.setattr(placed, "free_device", lambda _: PLENTY)
    monkeypatch.setattr(placed, "free_host", lambda: HOST_RESERVE)
    loaded = load(tiny(TWO_EXPERTS)).placed
    assert loaded is not None
    assert loaded.placement.mode == "resident"


def test_parts_that_another_model_has_on_the_device_are_counted_once(tiny, monkeypatch):
    model, options = tiny(TWO_EXPERTS), LoadOptions(parts=PartCache())
    load_placed(model.profile, model.folder, CPU, options)
    counted = predicted_of(model)
    needed = choose(counted, largest_plan(model.profile), PLENTY, None).verdicts[-1].device
    monkeypatch.setattr(placed, "free_device", lambda _: needed - counted.parts["text_encoder"].bytes)
    assert load_placed(model.profile, model.folder, CPU, options).placement.mode == "resident"
    alone = replace(options, parts=PartCache())
    assert load_placed(model.profile, model.folder, CPU, alone).placement.mode != "resident"


def test_a_missing_lora_is_noticed_before_any_weight_is_read(tiny, monkeypatch):
    model = tiny(TWO_EXPERTS)
    monkeypatch.setattr(placed, "load_checkpoint", nothing)
    distilled = replace(model.profile, loras=(LoraFile("owner/name", "additions.safetensors"),))
    with pytest.raises(CheckpointError, match=r"missing LoRA files: additions\.safetensors of owner/name"):
        Renderer.load(distilled, model.folder, "cpu")


def test_models_that_rest_need_room_in_host_memory(tiny, monkeypatch):
    model, options = tiny(TWO_EXPERTS), LoadOptions()
    one = load_placed(model.profile, model.folder, CPU, options)
    monkeypatch.setattr(placed, "free_device", lambda _: 10**6)
    monkeypatch.setattr(fitting, "free_host", lambda: HOST_RESERVE)
    monkeypatch.setattr(Keeper, "rest", nothing)
    with pytest.raises(PlacementError, match=r"another model: 0\.\d GB of weights would go to host memory, where 2\.1"):
        load_placed(model.profile, model.folder, CPU, options)
    assert options.neighbours == [one]
