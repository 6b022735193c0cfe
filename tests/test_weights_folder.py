"""Folders of any layout: which file is what, which expert, which tokenizer, and what is shared."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import weight_files as files
from tiny_checkpoint import CONFIGS, ONE_PICTURE, S2V, TEXT, TI2V, TWO_EXPERTS, TWO_PICTURES, TinyModel
from wan_pipelines.errors import CheckpointError
from wan_pipelines.load import PartCache, Precision, load_checkpoint
from wan_pipelines.profile import load_profile
from wan_pipelines.weights.folder import expert_of, scan
from wan_pipelines.weights.quantised import QuantisedLinear

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
#: what a profile says of clips that are chained
S2V_CLIPS = {"clip_frames": 80, "motion_frames": 9}
NO_CLIPS = {"clip_frames": None, "motion_frames": None}


@pytest.fixture
def comfy(tiny, tmp_path) -> Callable[..., tuple[TinyModel, Path, Path]]:
    """A miniature in ComfyUI's layout, and its configs."""

    def make(spec) -> tuple[TinyModel, Path, Path]:
        model = tiny(spec)
        files.write_comfy(model.folder, tmp_path / "weights")
        return model, tmp_path / "weights", files.write_configs(model.folder, tmp_path / "configs")

    return make


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("high_noise_model", "high"),
        ("low_noise_model", "low"),
        ("wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "high"),
        ("HighNoise/Wan2.2-I2V-A14B-HighNoise-Q4_K_S.gguf", "high"),
        ("Wan2_2-I2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors", "low"),
        ("wan2.2_i2v_A14b_low_noise_scaled_fp8_e4m3_lightx2v_4step.safetensors", "low"),
        ("low_vram/wan_high_noise.safetensors", "high"),
        ("flow/slow.safetensors", None),
        ("wan2.1_t2v_14B.safetensors", None),
        ("high/low.safetensors", None),
        ("highnoise_and_lownoise.safetensors", None),
    ],
)
def test_expert_by_name(name, expert):
    assert expert_of(Path(name)) == expert


def test_experts_take_their_roles_from_names(comfy):
    model, folder, config_dir = comfy(TWO_EXPERTS)
    loaded = load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir).experts
    wanted = model.checkpoint.experts
    assert torch.equal(loaded.high.proj_out.weight, wanted.high.proj_out.weight)
    assert loaded.low is not None
    assert wanted.low is not None
    assert torch.equal(loaded.low.proj_out.weight, wanted.low.proj_out.weight)
    assert loaded.boundary == model.profile.boundary


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("a", "b"),
            "cannot tell which transformer is for high and which for low noise: .*a.safetensors .*b.safetensors",
        ),
        (("high", "b"), "cannot tell which"),
        (("high_a", "high_b"), "cannot tell which"),
        (("high", "low", "low_b"), "cannot tell which"),
        (("high",), "two transformers are needed, 1 found; there is .*high.safetensors"),
    ],
)
def test_experts_that_cannot_be_told_apart_are_refused(comfy, names, message):
    model, folder, config_dir = comfy(TWO_EXPERTS)
    weights = folder / "diffusion_models"
    first = next(weights.iterdir()).rename(folder / "any.safetensors")
    shutil.rmtree(weights)
    weights.mkdir()
    for name in names:
        shutil.copy(first, weights / f"{name}.safetensors")
    first.unlink()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("diffusion_models", "no transformer found"),
        ("text_encoders", "no text encoder found"),
        ("vae", "no VAE found"),
        ("clip_vision", r"no image encoder \(CLIP\) found"),
        ("tokenizer", r"no tokenizer; put that of google/umt5-xxl into .*tokenizer \(tokenizer.json or spiece.model\)"),
    ],
)
def test_a_part_that_is_not_there(comfy, part, message):
    model, folder, config_dir = comfy(TWO_PICTURES)
    shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("part", ["text_encoders", "vae", "diffusion_models"])
def test_a_choice_is_not_made_in_silence(comfy, part):
    model, folder, config_dir = comfy(TWO_PICTURES)
    (path,) = (folder / part).iterdir()
    shutil.copy(path, path.with_name(f"other_{path.name}"))
    with pytest.raises(CheckpointError, match=rf"several could be the .*: .*{path.name} .*; leave one"):
        load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)


def test_the_profile_s_architecture_and_the_latents_choose(tiny, comfy):
    """A folder with other models beside: ComfyUI keeps all of them together."""
    model, folder, config_dir = comfy(TWO_PICTURES)
    other = tiny(TI2V)
    files.save(files.read_part(other.folder, "transformer"), folder / "diffusion_models" / "other.safetensors")
    shutil.copy(other.folder / "transformer/config.json", config_dir / "architectures/other-transformer.json")
    profile = replace(model.profile, architecture="small-transformer")
    loaded = load_checkpoint(profile, folder, CPU, None, config_dir=config_dir)
    assert loaded.experts.high.config["in_channels"] == 36
    with pytest.raises(CheckpointError, match="several could be the transformer"):
        load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)


def test_another_model_than_the_profile_s_is_refused(tiny, comfy):
    model, folder, config_dir = comfy(TWO_PICTURES)
    shutil.copy(tiny(TI2V).folder / "transformer/config.json", config_dir / "architectures/wanted.json")
    profile = replace(model.profile, architecture="wanted")
    with pytest.raises(
        CheckpointError, match=r"no transformer of wanted found; there is .*wan\.safetensors \(small-transformer\)"
    ):
        load_checkpoint(profile, folder, CPU, None, config_dir=config_dir)
    with pytest.raises(CheckpointError, match="transformer: is not wanted: it has input channels 36 instead of 16"):
        load_checkpoint(profile, model.folder, CPU, None, config_dir=config_dir)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (ONE_PICTURE, {"clip_pictures": 2}, "has positions for no picture tokens, the profile shows it 2 pictures"),
        (TWO_PICTURES, {"clip_pictures": 1}, "has positions for 514 picture tokens, the profile shows it 1 pictures"),
        (TWO_PICTURES, {"clip_pictures": 0}, "has an image encoder, but the profile shows the model no pictures"),
        (TEXT, {"conditioning": "vace"}, "has 0 VACE channels, vace needs 96"),
        (TEXT, {"conditioning": "concat"}, "has 16 input channels, conditioning concat needs 36"),
        (TEXT, {"clip_pictures": 1}, "model_index.json does not list image_encoder"),
        (TEXT, S2V_CLIPS | {"conditioning": "s2v"}, "model_index.json does not list audio_encoder"),
        (S2V, NO_CLIPS | {"conditioning": "text"}, "takes 4 audio states of 48, the encoder has 0 of 0"),
    ],
)
def test_a_profile_of_another_family_is_refused(tiny, spec, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(replace(tiny(spec).profile, **changes), tiny(spec).folder, CPU, None)


def test_a_text_encoder_of_another_width_is_refused(tiny, comfy):
    model, folder, config_dir = comfy(TEXT)
    path = config_dir / "architectures/small-text-encoder.json"
    text = files.without_copy(files.read_part(model.folder, "text_encoder"))
    (folder / "text_encoders/umt5.safetensors").unlink()
    wide = {name: torch.cat([value, value], dim=-1) if value.shape[-1] == 32 else value for name, value in text.items()}
    files.save(wide, folder / "text_encoders/wide.safetensors")
    path.write_text(path.read_text().replace('"d_model": 32', '"d_model": 64'))
    with pytest.raises(CheckpointError, match="the transformer takes text states of 32, the encoder's are 64"):
        load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)


def test_low_rank_additions_and_hidden_files_are_passed_over(comfy):
    model, folder, config_dir = comfy(TEXT)
    files.save({"diffusion_model.blocks.0.ffn.0.lora_down.weight": torch.ones(2, 2)}, folder / "loras/fast.safetensors")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "half.safetensors").write_bytes(b"half")
    load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)


def test_a_foreign_file_is_named_when_something_is_missing(comfy):
    model, folder, config_dir = comfy(TEXT)
    (path,) = (folder / "vae").iterdir()
    path.unlink()
    files.save({"net.weight": torch.ones(1)}, folder / "vae" / "taehv.safetensors")
    with pytest.raises(
        CheckpointError, match=r"no VAE found; not known: .*taehv\.safetensors: no Wan model, .*net\.weight"
    ):
        load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)


def test_a_stray_pickle_of_objects_is_passed_over_and_named_when_something_is_missing(comfy):
    model, folder, config_dir = comfy(TEXT)
    torch.save({"optimizer": CPU, "state": Path("x")}, folder / "optimizer.pt")
    load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match=r"no VAE found; cannot be read: .*optimizer\.pt: holds Python objects"):
        load_checkpoint(model.profile, folder, CPU, None, config_dir=config_dir)


def test_experts_of_another_architecture_are_all_listed(tiny, comfy):
    model, folder, config_dir = comfy(TWO_EXPERTS)
    shutil.copy(tiny(TI2V).folder / "transformer/config.json", config_dir / "architectures/wanted.json")
    profile = replace(model.profile, architecture="wanted")
    message = r"two transformers of wanted are needed, 0 found; there are .* \(small-transformer\), .* \(small-tr"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(profile, folder, CPU, None, config_dir=config_dir)


def test_an_empty_folder_says_where_weights_come_from(tiny, tmp_path):
    profile = tiny(TEXT).profile
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing: .*, and no other$"):
        load_checkpoint(profile, tmp_path, CPU, None)
    large = load_profile("wan2.2-i2v-a14b", CONFIGS)
    with pytest.raises(
        CheckpointError, match=r"no other; `wanbox weights get wan2\.2-i2v-a14b` fetches it; docs/weigh"
    ):
        load_checkpoint(large, tmp_path, CPU, None)
    with pytest.raises(CheckpointError, match=r"no other; they are brought by oneself, as docs/weights\.md says"):
        load_checkpoint(large.with_preset("distilled"), tmp_path / "absent", CPU, None)


def test_links_into_a_cache_are_followed(comfy, tmp_path):
    model, folder, config_dir = comfy(TEXT)
    (tmp_path / "links").mkdir()
    for entry in folder.iterdir():
        (tmp_path / "links" / entry.name).symlink_to(entry)
    load_checkpoint(model.profile, tmp_path / "links", CPU, None, config_dir=config_dir)


def test_what_a_folder_holds(tiny, comfy):
    _, folder, config_dir = comfy(TWO_PICTURES)
    contents = scan(folder, config_dir)
    kinds = {found.where.relative_to(folder).parts[0]: found.kind for found in contents.found}
    assert {name: (kind.part, kind.layout) for name, kind in kinds.items()} == {
        "clip_vision": ("image_encoder", "diffusers"),
        "diffusion_models": ("transformer", "comfy"),
        "text_encoders": ("text_encoder", "comfy"),
        "vae": ("vae", "original"),
    }
    assert contents.tokenizer == folder / "tokenizer"


def test_quantised_layers_are_kept_or_not_as_asked(tiny, comfy):
    model, folder, config_dir = comfy(TWO_PICTURES)
    shutil.rmtree(folder / "diffusion_models")
    state = files.read_part(model.folder, "transformer")
    files.TRANSFORMER_FORMATS["comfy-fp8-scaled"](state, folder / "diffusion_models")

    def kept(dtype) -> bool:
        high = load_checkpoint(model.profile, folder, CPU, dtype, config_dir=config_dir).experts.high
        return any(isinstance(module, QuantisedLinear) for module in high.modules())

    assert kept("bfloat16")
    assert kept(Precision(torch.bfloat16))
    assert not kept(Precision(torch.bfloat16, keep_quantised=False))


def test_progress_is_told_by_part_and_may_stop_the_loading(tiny):
    model, told = tiny(TWO_EXPERTS), []
    load_checkpoint(model.profile, model.folder, CPU, None, on_part=lambda *line: told.append(line))
    parts = list(dict.fromkeys(name for name, _, _ in told))
    assert parts == ["transformer", "transformer_2", "text_encoder", "vae"]
    for part in parts:
        lines = [(done, total) for name, done, total in told if name == part]
        assert lines == [(done, len(lines)) for done in range(1, len(lines) + 1)]

    class Stop(Exception):
        pass

    def stop(name: str, done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        load_checkpoint(model.profile, model.folder, CPU, None, on_part=stop)


# sharing


def test_text_encoder_and_vae_of_two_models_are_one(tiny, comfy, tmp_path):
    """The same weights in another folder, another layout and another naming."""
    model, folder, config_dir = comfy(TWO_PICTURES)
    files.write_original(model.folder, tmp_path / "original")
    cache = PartCache()
    one, two, three = (
        load_checkpoint(model.profile, place, CPU, None, config_dir=config_dir, parts=cache)
        for place in (model.folder, folder, tmp_path / "original")
    )
    assert one.text_encoder is two.text_encoder is three.text_encoder
    assert one.vae is two.vae is three.vae
    assert one.image_encoder is two.image_encoder
    assert one.experts.high is not two.experts.high


def test_other_weights_or_another_dtype_are_not_shared(tiny, tmp_path):
    model, cache = tiny(TEXT), PartCache()
    shutil.copytree(model.folder, tmp_path / "copy")
    state = files.read_part(model.folder, "vae")
    state["decoder.conv_out.bias"] += 0.5
    files.save(state, tmp_path / "copy/vae/diffusion_pytorch_model.safetensors")
    one = load_checkpoint(model.profile, model.folder, CPU, None, parts=cache)
    two = load_checkpoint(model.profile, tmp_path / "copy", CPU, None, parts=cache)
    half = load_checkpoint(model.profile, model.folder, CPU, "bfloat16", parts=cache)
    assert one.vae is not two.vae
    assert one.text_encoder is two.text_encoder
    assert half.text_encoder is not one.text_encoder
    assert half.vae is one.vae


def test_the_cache_holds_nothing_alive(tiny):
    model, cache = tiny(TEXT), PartCache()
    loaded = load_checkpoint(model.profile, model.folder, CPU, None, parts=cache)
    assert len(cache) == 2
    del loaded
    gc.collect()
    assert len(cache) == 0
