"""The bundled configs, and what a weight file is taken for."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

import weight_files as files
from tiny_checkpoint import CONFIGS
from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.assemble import build, build_on_meta
from wan_pipelines.weights.keys import renamer
from wan_pipelines.weights.kinds import Kind, config_folder, detect, read_config
from wan_pipelines.weights.pictures import split_pictures
from wan_pipelines.weights.tensors import Entry, FileTensors

#: billions of parameters, of the class that has the weights (docs of each release; counted on the meta device)
PARAMETERS = {
    "wan2.1-t2v-1.3b": 1.419,
    "wan-t2v-14b": 14.288,
    "wan2.1-i2v-14b": 16.395,
    "wan2.1-flf2v-14b": 16.396,
    "wan2.2-i2v-a14b": 14.289,
    "wan2.2-ti2v-5b": 5.000,
    "wan2.1-vace-1.3b": 2.154,
    "wan2.1-vace-14b": 17.338,
    "wan2.1-fun-inp-1.3b": 1.564,
    "umt5-xxl": 5.681,
    "wan2.1-vae": 0.127,
    "wan2.2-vae": 0.705,
    "clip-vit-h": 0.631,
    "wan2.2-s2v-14b": 16.296,
    "wav2vec2-large-xlsr-53": 0.315,
}
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def shapes_of():
    """Names and shapes of a bundled architecture, which is built once."""
    made: dict[str, Shapes] = {}

    def get(architecture: str) -> Shapes:
        if architecture not in made:
            model = build(read_config(architecture))
            made[architecture] = {name: tuple(value.shape) for name, value in model.named_parameters()}
        return made[architecture]

    return get


def part_of(architecture: str) -> str:
    names = {"umt5-xxl": "text_encoder", "clip-vit-h": "image_encoder", "wav2vec2-large-xlsr-53": "audio_encoder"}
    return names.get(architecture, "vae" if architecture.endswith("vae") else "transformer")


def original(architecture: str, shapes: Shapes) -> Shapes:
    """Under the names of the original code."""
    match part_of(architecture):
        case "transformer":
            return {files.transformer_name(name): shape for name, shape in shapes.items()}
        case "text_encoder":
            return {files.text_name(name): shape for name, shape in shapes.items()}
        case "vae":
            nested = architecture == "wan2.2-vae"
            return {files.vae_name(name, 2, nested): shape for name, shape in shapes.items()}
        case "audio_encoder":
            return {files.audio_name(name): shape for name, shape in shapes.items()}
        case _:
            meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            return {name: tuple(tensor.shape) for name, tensor in files.clip_original(meta).items()}


def test_the_table_names_every_bundled_config():
    assert {path.stem for path in config_folder().glob("*.json")} == PARAMETERS.keys()
    assert config_folder() == config_folder(CONFIGS)


@pytest.mark.parametrize("architecture", PARAMETERS)
def test_parameters(shapes_of, architecture):
    count = sum(torch.Size(shape).numel() for shape in shapes_of(architecture).values())
    assert round(count / 1e9, 3) == PARAMETERS[architecture]


@pytest.mark.parametrize("architecture", PARAMETERS)
def test_detected_in_the_names_of_the_classes_and_of_the_original_code(shapes_of, architecture):
    shapes = shapes_of(architecture)
    part = part_of(architecture)
    assert detect(shapes) == Kind(part, architecture, "diffusers", None)  # pyright: ignore[reportArgumentType]
    assert detect(original(architecture, shapes)) == Kind(part, architecture, "original", None)  # pyright: ignore


@pytest.mark.parametrize("architecture", [name for name in PARAMETERS if part_of(name) != "image_encoder"])
def test_original_names_lead_to_those_of_the_class(shapes_of, architecture):
    shapes = shapes_of(architecture)
    names = original(architecture, shapes)
    rename = renamer(part_of(architecture), names)  # pyright: ignore[reportArgumentType]
    assert {rename(name): shape for name, shape in names.items()} == shapes


@pytest.mark.parametrize(
    "architecture", ["wan2.1-t2v-1.3b", "wan2.1-fun-inp-1.3b", "wan2.1-vace-1.3b", "wan2.2-ti2v-5b"]
)
def test_transformer_names_are_those_of_diffusers_converter(shapes_of, architecture):
    shapes = shapes_of(architecture)
    names = original(architecture, shapes)
    rename = renamer("transformer", names)
    theirs = convert_wan_transformer_to_diffusers({name: name for name in names})
    assert {old: new for new, old in theirs.items()} == {name: rename(name) for name in names}


def test_vae_names_are_those_of_diffusers_converter(shapes_of):
    names = original("wan2.1-vae", shapes_of("wan2.1-vae"))
    rename = renamer("vae", names)
    theirs = convert_wan_vae_to_diffusers({name: name for name in names})
    assert {old: new for new, old in theirs.items()} == {name: rename(name) for name in names}


def test_clip_of_the_original_code_is_cut_into_the_names_of_the_class(shapes_of):
    shapes = shapes_of("clip-vit-h")
    entries = {name: Entry(shape, "float16") for name, shape in original("clip-vit-h", shapes).items()}
    cut = split_pictures(FileTensors(CONFIGS / "clip.pth", entries)).shapes()
    rename = renamer("image_encoder", cut)
    bare = {name.removeprefix("vision_model."): shape for name, shape in shapes.items()}
    assert {new: shape for name, shape in cut.items() if (new := rename(name))} == bare


def test_prefixes_of_comfyui_are_no_hindrance(shapes_of):
    names = original("wan2.2-i2v-a14b", shapes_of("wan2.2-i2v-a14b"))
    for prefix in ("model.diffusion_model.", "diffusion_model."):
        kind = detect({prefix + name: shape for name, shape in names.items()})
        assert kind == Kind("transformer", "wan2.2-i2v-a14b", "comfy", None)


@pytest.mark.parametrize(
    ("more", "dtypes", "layout", "quantised"),
    [
        ({"blocks.0.ffn.0.scale_weight": ()}, {}, "comfy", "fp8_scaled"),
        ({"scaled_fp8": (0,)}, {}, "comfy", "fp8_scaled"),
        ({"blocks.0.ffn.0.weight_scale": (), "blocks.0.ffn.0.comfy_quant": (26,)}, {}, "comfy", "fp8_scaled"),
        ({"blocks.0.ffn.0.weight_scale": (8960, 1)}, {}, "lightx2v", "fp8"),
        ({"blocks.0.ffn.0.weight_scale": (8960, 1)}, {"blocks.0.ffn.0.weight": "int8"}, "lightx2v", "int8"),
        ({}, {"blocks.0.ffn.0.weight": "float8_e4m3fn"}, "original", "fp8"),
        ({}, {"blocks.0.ffn.0.weight": "gguf.Q4_K"}, "gguf", "gguf"),
    ],
)
def test_quantisation_is_told_by_companions_and_dtypes(shapes_of, more, dtypes, layout, quantised):
    shapes = {**original("wan2.1-t2v-1.3b", shapes_of("wan2.1-t2v-1.3b")), **more}
    assert detect(shapes, dtypes) == Kind("transformer", "wan2.1-t2v-1.3b", layout, quantised)


@pytest.mark.parametrize(
    "names",
    [
        ["diffusion_model.blocks.0.self_attn.q.lora_down.weight", "diffusion_model.blocks.0.self_attn.q.alpha"],
        ["transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight"],
        ["lora_unet_blocks_0_self_attn_q.lora_down.weight"],
        ["diffusion_model.blocks.0.norm3.diff", "diffusion_model.head.head.diff_b"],
    ],
)
def test_low_rank_additions_are_no_models(names):
    assert detect(dict.fromkeys(names, (4, 4))).part == "lora"


def test_a_size_that_is_not_known_is_told_with_those_that_are(shapes_of):
    shapes = {**shapes_of("wan2.2-i2v-a14b"), "patch_embedding.weight": (5120, 52, 1, 2, 2)}
    with pytest.raises(CheckpointError, match=r"it has width 5120, layers 40, input channels 52, .* known are .*5b \("):
        detect(shapes)


def test_a_missing_layer_is_no_known_model(shapes_of):
    shapes = {name: shape for name, shape in shapes_of("wan-t2v-14b").items() if not name.startswith("blocks.39.")}
    with pytest.raises(CheckpointError, match="no known transformer: it has width 5120, layers 39"):
        detect(shapes)


def test_a_single_missing_tensor_does_not_hide_what_it_is(shapes_of):
    """So that the loader can say which one is missing."""
    for lost in ("patch_embedding.bias", "blocks.0.ffn.net.0.proj.weight", "proj_out.weight"):
        shapes = {name: shape for name, shape in shapes_of("wan-t2v-14b").items() if name != lost}
        assert detect(shapes).architecture == "wan-t2v-14b"


def test_without_its_first_tensor_it_may_be_several(shapes_of):
    shapes = {name: shape for name, shape in shapes_of("wan-t2v-14b").items() if name != "patch_embedding.weight"}
    with pytest.raises(CheckpointError, match=r"may be any of wan-t2v-14b, wan2\.2-i2v-a14b: .* tell input channels"):
        detect(shapes)


def test_foreign_tensors_are_told():
    with pytest.raises(
        CheckpointError, match=r"no Wan model, text encoder, VAE, CLIP or LoRA: its keys are lstm\.weight"
    ):
        detect({"lstm.weight": (2, 2)})


def test_an_architecture_that_is_not_bundled():
    with pytest.raises(CheckpointError, match=r"architecture 'wan9' is unknown; .*architectures has clip-vit-h, "):
        build_on_meta(Kind("transformer", "wan9", "diffusers", None))


def test_tables_that_no_file_holds_are_there_from_the_start():
    model = build_on_meta(Kind("transformer", "wan2.1-t2v-1.3b", "diffusers", None))
    assert {value.device.type for value in model.parameters()} == {"meta"}
    assert {value.device.type for value in model.buffers()} == {"cpu"}
