"""LoRA files in three key styles: fused and hot, held against diffusers' own loader and against the arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from tiny_checkpoint import CONFIGS
from wan_pipelines.denoise import Experts
from wan_pipelines.errors import CheckpointError
from wan_pipelines.preset import LoraFile
from wan_pipelines.profile import Profile, load_profile
from wan_pipelines.streaming import Ferry, Streamer
from wan_pipelines.weights.lora import HotLora, apply_loras, find_lora, fit, fuse, read_lora
from wan_pipelines.weights.lora_keys import layer_name, parameter_name, parse_key
from wan_pipelines.weights.quantised import GgufLinear, QuantisedLinear
from wan_pipelines.weights.tensors import open_tensors

WIDTH, FFN, TEXT, FREQ, RANK, ALPHA, BLOCKS = 32, 48, 24, 16, 4, 2.0, 2
STRENGTH = 0.7
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
SETTINGS = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.target_modules": TARGETS}
CPU = torch.device("cpu")
Tensors = dict[str, Tensor]
#: diffusers' name of a layer in a block, its name in the original code, out, in
BLOCK_LAYERS = [
    *(
        (f"attn{number}.{target}", f"{original}_attn.{name}", WIDTH, WIDTH)
        for number, original in ((1, "self"), (2, "cross"))
        for target, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    ),
    ("ffn.net.0.proj", "ffn.0", FFN, WIDTH),
    ("ffn.net.2", "ffn.2", WIDTH, FFN),
]


def make_model(kind: Any = WanTransformer3DModel, **changes: Any) -> Any:
    """The same random weights every time."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2, "num_layers": BLOCKS, "ffn_dim": FFN}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(**sizes | {"in_channels": 16, "out_channels": 16, "text_dim": TEXT, "freq_dim": FREQ} | changes)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # as they are made, norms are ones and zeros, and a mistake would not show
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def forward(model: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    channels = model.config["in_channels"]
    latents = torch.randn((1, channels, 2, 4, 4), generator=generator)
    text = torch.randn((1, 512, TEXT), generator=generator)
    more = {}
    if model.config["image_dim"]:
        more["encoder_hidden_states_image"] = torch.randn((1, 5, 8), generator=generator).to(dtype)
    if "vace_layers" in model.config:
        more["control_hidden_states"] = torch.randn((1, 96, 2, 4, 4), generator=generator).to(dtype)
    return model(latents.to(dtype), torch.tensor([500]), text.to(dtype), return_dict=False, **more)[0]


def noise(*shape: int, seed: int) -> Tensor:
    return 0.25 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pairs() -> list[tuple[str, str, Tensor, Tensor]]:
    """diffusers' name, original name, down and up of every linear layer in the blocks."""
    layers = [(f"blocks.{i}.", *layer) for i in range(BLOCKS) for layer in BLOCK_LAYERS]
    return [
        (block + target, block + name, noise(RANK, inside, seed=2 * i), noise(outside, RANK, seed=2 * i + 1))
        for i, (block, target, name, outside, inside) in enumerate(layers)
    ]


def in_diffusers_style() -> Tensors:
    """Without alpha: that stands in the header, as peft's setting."""
    halves = [(f"transformer.{target}", down, up) for target, _, down, up in pairs()]
    return {f"{name}.lora_{half}.weight": t for name, down, up in halves for half, t in (("A", down), ("B", up))}


def in_original_names(prefix: str, halves: tuple[str, str], separator: str = ".") -> Tensors:
    tensors: Tensors = {}
    for _, original, down, up in pairs():
        name = prefix + original.replace(".", separator)
        tensors |= {f"{name}.{halves[0]}.weight": down, f"{name}.{halves[1]}.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return tensors


STYLES: dict[str, Callable[[], Tensors]] = {
    "diffusers": in_diffusers_style,
    "comfy": lambda: in_original_names("diffusion_model.", ("lora_down", "lora_up")),
    "comfy A and B": lambda: in_original_names("diffusion_model.", ("lora_A", "lora_B")),
    "musubi": lambda: in_original_names("lora_unet_", ("lora_down", "lora_up"), "_"),
}


def write(path: Path, tensors: Tensors, settings: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt"} | ({} if settings is None else {"lora_adapter_metadata": json.dumps(settings)})
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, header)
    return path


def write_style(folder: Path, style: str) -> Path:
    return write(folder / f"{style}.safetensors", STYLES[style](), SETTINGS if style == "diffusers" else None)


def lightx2v_like() -> Tensors:
    """Every kind of key that lightx2v's distilled LoRAs have: pairs, differences of norms, biases, tables, head."""
    tensors = {}
    for i, (_, name, down, up) in enumerate(pairs()):
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.diff_b"] = noise(up.shape[0], seed=100 + i)
    for i in range(BLOCKS):
        for j, name in enumerate(("self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k")):
            tensors[f"blocks.{i}.{name}.diff"] = noise(WIDTH, seed=200 + 10 * i + j)
        tensors[f"blocks.{i}.norm3.diff"] = noise(WIDTH, seed=230 + i)
        tensors[f"blocks.{i}.norm3.diff_b"] = noise(WIDTH, seed=240 + i)
        tensors[f"blocks.{i}.diff_m"] = noise(1, 6, WIDTH, seed=250 + i)
    tensors |= {
        "head.diff_m": noise(1, 2, WIDTH, seed=300),
        "head.head.diff": noise(64, WIDTH, seed=301),
        "head.head.diff_b": noise(64, seed=302),
        "patch_embedding.diff": noise(WIDTH, 16, 1, 2, 2, seed=303),
        "patch_embedding.diff_b": noise(WIDTH, seed=304),
        "time_projection.1.diff_b": noise(6 * WIDTH, seed=305),
    }
    for name, outside, inside in (("text_embedding.0", WIDTH, TEXT), ("time_embedding.2", WIDTH, WIDTH)):
        tensors[f"{name}.lora_down.weight"] = noise(RANK, inside, seed=310)
        tensors[f"{name}.lora_up.weight"] = noise(outside, RANK, seed=311)
    return {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}


def picture_keys() -> Tensors:
    """What is for the picture attention, and only for it."""
    tensors = {
        "img_emb.proj.0.diff": noise(8, seed=400),
        "img_emb.proj.1.lora_down.weight": noise(RANK, 8, seed=401),
        "img_emb.proj.1.lora_up.weight": noise(8, RANK, seed=402),
        "img_emb.proj.4.diff_b": noise(WIDTH, seed=403),
    }
    for i in range(BLOCKS):
        tensors[f"blocks.{i}.cross_attn.norm_k_img.diff"] = noise(WIDTH, seed=410 + i)
        for j, name in enumerate(("k_img", "v_img")):
            tensors[f"blocks.{i}.cross_attn.{name}.lora_down.weight"] = noise(RANK, WIDTH, seed=420 + 2 * i + j)
            tensors[f"blocks.{i}.cross_attn.{name}.lora_up.weight"] = noise(WIDTH, RANK, seed=430 + 2 * i + j)
    return {f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}


def fused(path: Path, strength: float = STRENGTH, **changes) -> Any:
    model = make_model(**changes)
    fuse(model, read_lora(path), strength)
    return model


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def by_diffusers(path: Path, strength: float = STRENGTH, **changes) -> Tensor:
    pytest.importorskip("peft")
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    transformer = make_model(**changes)
    pipeline = WanPipeline(None, None, None, None, transformer)  # pyright: ignore[reportArgumentType]
    pipeline.load_lora_weights(str(path))
    pipeline.fuse_lora(lora_scale=strength)
    return forward(transformer)


@pytest.mark.parametrize("style", STYLES)
def test_each_style_is_read_as_diffusers_reads_it(tmp_path, style):
    path = write_style(tmp_path, style)
    ours = forward(fused(path))
    assert difference(ours, forward(make_model())) > 0.05
    assert difference(ours, by_diffusers(path)) < 1e-5


def test_all_styles_say_the_same(tmp_path):
    results = [forward(fused(write_style(tmp_path, style))) for style in STYLES]
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_the_sum_is_the_definition(tmp_path):
    model = make_model()
    changed = fused(write_style(tmp_path, "comfy"))
    for target, _, down, up in pairs():
        wanted = model.get_parameter(f"{target}.weight") + STRENGTH * ALPHA / RANK * (up @ down)
        assert difference(changed.get_parameter(f"{target}.weight"), wanted) < 1e-6


def test_biases_and_head_as_diffusers_adds_them(tmp_path):
    # diffusers leaves out differences of norms, tables and the patch embedding, so those are not in this file
    kept = {
        key: tensor
        for key, tensor in lightx2v_like().items()
        if not any(part in key for part in ("norm", "diff_m", "patch_embedding", "time_projection", "_embedding"))
    }
    path = write(tmp_path / "x.safetensors", kept)
    assert difference(forward(fused(path)), by_diffusers(path)) < 1e-5


def test_every_kind_of_difference_lands_where_it_belongs(tmp_path):
    tensors = lightx2v_like()
    lora = read_lora(write(tmp_path / "x.safetensors", tensors))
    changed, base = make_model(), make_model()
    found = fuse(changed, lora, STRENGTH)
    assert found.left_out == ()
    wanted = {
        "blocks.1.norm2.weight": "blocks.1.norm3.diff",
        "blocks.1.norm2.bias": "blocks.1.norm3.diff_b",
        "blocks.0.attn1.norm_q.weight": "blocks.0.self_attn.norm_q.diff",
        "blocks.0.attn2.norm_k.weight": "blocks.0.cross_attn.norm_k.diff",
        "blocks.1.ffn.net.2.bias": "blocks.1.ffn.2.diff_b",
        "blocks.1.scale_shift_table": "blocks.1.diff_m",
        "scale_shift_table": "head.diff_m",
        "proj_out.weight": "head.head.diff",
        "proj_out.bias": "head.head.diff_b",
        "patch_embedding.weight": "patch_embedding.diff",
        "condition_embedder.time_proj.bias": "time_projection.1.diff_b",
    }
    for name, key in wanted.items():
        expected = base.get_parameter(name) + STRENGTH * tensors[f"diffusion_model.{key}"]
        assert difference(changed.get_parameter(name), expected) < 1e-6, name
    same = {name for name, value in base.named_parameters() if torch.equal(value, changed.get_parameter(name))}
    assert same == base.state_dict().keys() - found.additions.keys()


@pytest.mark.parametrize("kind", ["text", "pictures", "vace"])
def test_hot_is_fused_and_its_removal_restores_every_bit(tmp_path, kind):
    changes = {
        "text": {},
        "pictures": {"image_dim": 8, "added_kv_proj_dim": WIDTH},
        "vace": {"kind": WanVACETransformer3DModel, "vace_layers": [0, 1], "vace_in_channels": 96},
    }[kind]
    tensors = lightx2v_like() | (picture_keys() if kind == "pictures" else {})
    lora = read_lora(write(tmp_path / "x.safetensors", tensors))
    model, other = make_model(**changes), make_model(**changes)
    before, weights = forward(model), deepcopy(model.state_dict())
    hot = HotLora(model, lora, STRENGTH)
    fuse(other, lora, STRENGTH)
    assert difference(forward(model), before) > 0.05
    assert difference(forward(model), forward(other)) < 1e-5
    hot.remove()
    assert torch.equal(forward(model), before)
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    hot.remove()


def test_strength_of_a_hot_lora_can_change(tmp_path):
    path = write(tmp_path / "x.safetensors", lightx2v_like())
    model = make_model()
    before = forward(model)
    hot = HotLora(model, read_lora(path), 1.0)
    for strength in (0.3, -0.5):
        hot.strength = strength
        assert difference(forward(model), forward(fused(path, strength))) < 1e-5
    hot.strength = 0
    assert torch.equal(forward(model), before)
    with pytest.raises(ValueError, match=r"strength: must be finite \(got nan\)"):
        hot.strength = float("nan")


def test_a_hot_lora_works_inside_and_outside_of_inference_mode(tmp_path):
    lora = read_lora(write(tmp_path / "x.safetensors", lightx2v_like()))
    model = make_model()
    HotLora(model, lora)
    with torch.inference_mode():
        inside = forward(model)
    assert torch.equal(inside, forward(model))


def test_a_hot_lora_follows_the_dtype_of_its_model(tmp_path):
    lora = read_lora(write(tmp_path / "x.safetensors", lightx2v_like()))
    model, late = make_model(), make_model().to(torch.bfloat16)
    HotLora(model, lora)
    forward(model)
    HotLora(late, lora)
    assert torch.equal(forward(model.to(torch.bfloat16), torch.bfloat16), forward(late, torch.bfloat16))


def test_two_hot_loras_add_up_and_leave_in_any_order(tmp_path):
    first = read_lora(write(tmp_path / "1.safetensors", lightx2v_like()))
    second = read_lora(write_style(tmp_path, "musubi"))
    model, both = make_model(), make_model()
    before = forward(model)
    hot = [HotLora(model, first, 0.5), HotLora(model, second, 0.25)]
    fuse(both, first, 0.5)
    fuse(both, second, 0.25)
    assert difference(forward(model), forward(both)) < 1e-5
    hot[0].remove()
    assert difference(forward(model), forward(fused(second.path, 0.25))) < 1e-5
    hot[1].remove()
    assert torch.equal(forward(model), before)


def test_a_forward_that_fails_leaves_the_model_as_it_was(tmp_path):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    HotLora(model, read_lora(write(tmp_path / "x.safetensors", lightx2v_like())))
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3, 2, 4, 4), torch.tensor([500]), torch.zeros(1, 512, TEXT))
    with pytest.raises(RuntimeError):
        model.blocks[0](torch.zeros(1, 8, 5), torch.zeros(1, 512, 5), torch.zeros(1, 6, WIDTH), None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def move_blocks(model: Any) -> None:
    """The weights of a block are in place only while it runs; in between there is nothing."""

    def bring(block: nn.Module, _: object) -> None:
        for name, value in block.named_parameters():
            value.data = kept[block, name].clone()

    def drop(block: nn.Module, *_: object) -> None:
        for value in block.parameters():
            value.data = torch.full_like(value, torch.nan)

    kept = {(block, name): value.data for block in model.blocks for name, value in block.named_parameters()}
    for block in model.blocks:
        block.register_forward_pre_hook(bring)
        block.register_forward_hook(drop)


def test_a_hot_lora_works_over_weights_that_hooks_bring(tmp_path):
    lora = read_lora(write(tmp_path / "x.safetensors", lightx2v_like()))
    model = make_model()
    before = forward(model)
    move_blocks(model)
    hot = HotLora(model, lora, STRENGTH)
    for _ in range(2):
        assert difference(forward(model), forward(fused(lora.path))) < 1e-5
    assert all(value.isnan().all() for value in model.blocks.parameters())
    hot.remove()
    assert torch.equal(forward(model), before)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_hot_lora_works_over_streamed_blocks(tmp_path, is_first):
    lora = read_lora(write(tmp_path / "x.safetensors", lightx2v_like()))
    model = make_model()
    before = forward(model)
    hot = HotLora(model, lora, STRENGTH) if is_first else None
    streamer = Streamer(list(model.blocks), CPU, Ferry(CPU, 1 << 20))
    hot = hot or HotLora(model, lora, STRENGTH)
    for _ in range(2):
        assert difference(forward(model), forward(fused(lora.path))) < 1e-5
    streamer.stop()
    assert difference(forward(model), forward(fused(lora.path))) < 1e-5
    hot.remove()
    assert torch.equal(forward(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32_and_rounded_once(tmp_path, dtype):
    path = write_style(tmp_path, "comfy")
    model, base = make_model().to(dtype), make_model().to(dtype)
    fuse(model, read_lora(path), STRENGTH)
    target, _, down, up = pairs()[3]
    wanted = base.get_parameter(f"{target}.weight").float() + STRENGTH * ALPHA / RANK * (up @ down)
    assert torch.equal(model.get_parameter(f"{target}.weight"), wanted.to(dtype))
    HotLora(base, read_lora(path), STRENGTH)
    spread = forward(model, dtype).float().std()
    assert difference(forward(base, dtype).float(), forward(model, dtype).float()) < 0.1 * spread


def test_weights_that_are_mapped_from_a_file_are_not_written_to(tmp_path):
    model = make_model()
    before = model.get_parameter("blocks.0.attn1.to_q.weight").data
    kept = before.clone()
    fuse(model, read_lora(write_style(tmp_path, "comfy")))
    assert torch.equal(before, kept)
    assert not torch.equal(model.get_parameter("blocks.0.attn1.to_q.weight"), kept)


def test_a_text_lora_fits_a_model_that_sees_pictures(tmp_path):
    changes = {"image_dim": 8, "added_kv_proj_dim": WIDTH, "in_channels": 36}
    path = write_style(tmp_path, "musubi")
    model = make_model(**changes)
    before = model.get_parameter("blocks.0.attn2.add_k_proj.weight").clone()
    assert fuse(model, read_lora(path), STRENGTH).left_out == ()
    assert torch.equal(model.get_parameter("blocks.0.attn2.add_k_proj.weight"), before)
    assert difference(forward(model), by_diffusers(path, **changes)) < 1e-5


def test_what_is_for_pictures_is_left_out_and_named(tmp_path):
    tensors = in_original_names("diffusion_model.", ("lora_down", "lora_up"))
    plain = write(tmp_path / "plain.safetensors", tensors)
    path = write(tmp_path / "x.safetensors", tensors | picture_keys())
    model = make_model()
    found = fuse(model, read_lora(path), STRENGTH)
    assert len(found.left_out) == 3 + 3 * BLOCKS
    assert "diffusion_model.blocks.0.cross_attn.k_img.lora_up.weight" in found.left_out
    assert torch.equal(forward(model), forward(fused(plain)))


def test_a_patch_embedding_for_other_inputs_is_left_out_and_named(tmp_path):
    model = make_model(in_channels=36)
    before = model.get_parameter("patch_embedding.weight").clone()
    found = fuse(model, read_lora(write(tmp_path / "x.safetensors", lightx2v_like())))
    assert found.left_out == ("diffusion_model.patch_embedding.diff",)
    assert torch.equal(model.get_parameter("patch_embedding.weight"), before)


def test_layers_of_the_second_stack_of_vace(tmp_path):
    pair = {"lora_A.weight": noise(RANK, WIDTH, seed=1), "lora_B.weight": noise(WIDTH, RANK, seed=2)}
    names = {"vace_blocks.0.before_proj": "vace_blocks.0.proj_in", "vace_blocks.1.after_proj": "vace_blocks.1.proj_out"}
    tensors = {f"diffusion_model.{name}.{half}": tensor.clone() for name in names for half, tensor in pair.items()}
    model = make_model(WanVACETransformer3DModel, vace_layers=[0, 1], vace_in_channels=96)
    found = fuse(model, read_lora(write(tmp_path / "x.safetensors", tensors)))
    assert set(found.additions) == {f"{name}.weight" for name in names.values()}


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"transformer.lora_alpha": 8, "transformer.r": RANK}, 2.0),
        ({"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 4.0),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {r"attn1\.to_q": 1}}, 0.25),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"to_k": 1}}, 2.0),
        (None, 1.0),
    ],
)
def test_the_strength_that_peft_noted(tmp_path, settings, scale):
    name = "transformer.blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": noise(RANK, WIDTH, seed=1), f"{name}.lora_B.weight": noise(WIDTH, RANK, seed=2)}
    lora = read_lora(write(tmp_path / "x.safetensors", tensors, settings))
    assert lora.additions["blocks.0.attn1.to_q.weight"].scale == scale


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"r": RANK, "lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "alpha_pattern": {"^blocks.0.self_attn.q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"^self_attn.q": 2}}, 2.0),
    ],
)
def test_a_folder_of_peft_with_its_settings_beside(tmp_path, settings, scale):
    name = "base_model.model.blocks.0.self_attn.q"
    tensors = {f"{name}.lora_A.weight": noise(RANK, WIDTH, seed=1), f"{name}.lora_B.weight": noise(WIDTH, RANK, seed=2)}
    path = write(tmp_path / "adapter_model.safetensors", tensors | {f"{name}.lora_B.bias": noise(WIDTH, seed=3)})
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    additions = read_lora(path).additions
    assert {addition.scale for addition in additions.values()} == {scale}
    assert set(additions) == {"blocks.0.attn1.to_q.weight", "blocks.0.attn1.to_q.bias"}


@pytest.mark.parametrize("text", ["{", "[]", '{"lora_alpha": []}', '{"alpha_pattern": {"(": 1}}'])
def test_settings_that_cannot_be_read(tmp_path, text):
    path = write(tmp_path / "adapter_model.safetensors", in_diffusers_style())
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"{path}: its peft settings cannot be read"):
        read_lora(path)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("transformer.blocks.3.attn1.to_out.0", "blocks.3.attn1.to_out.0"),
        ("diffusion_model.blocks.3.self_attn.o", "blocks.3.attn1.to_out.0"),
        ("blocks.3.self_attn.o", "blocks.3.attn1.to_out.0"),
        ("lora_unet_blocks_3_self_attn_o", "blocks.3.attn1.to_out.0"),
        ("lora_unet_blocks_3_cross_attn_k_img", "blocks.3.attn2.add_k_proj"),
        ("lora_unet_blocks_3_ffn_0", "blocks.3.ffn.net.0.proj"),
        ("lora_unet_vace_blocks_3_ffn_2", "vace_blocks.3.ffn.net.2"),
        ("lora_unet_time_projection_1", "condition_embedder.time_proj"),
        ("model.diffusion_model.head.head", "proj_out"),
        ("transformer.proj_out", "proj_out"),
        ("diffusion_model.blocks.3.norm3", "blocks.3.norm2"),
        ("diffusion_model.blocks.3.modulation", "blocks.3.scale_shift_table"),
        ("diffusion_model.blocks.3.norm1", None),
        ("diffusion_model.double_blocks.3.img_attn.qkv", None),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", None),
    ],
)
def test_names_of_layers(name, wanted):
    assert layer_name(name) == wanted


@pytest.mark.parametrize("vace", [False, True])
def test_every_parameter_can_be_named(vace):
    pictures = {"image_dim": 8, "added_kv_proj_dim": WIDTH}
    stack = {"kind": WanVACETransformer3DModel, "vace_layers": [0, 1], "vace_in_channels": 96}
    for name in make_model(**(stack if vace else pictures)).state_dict():
        layer, _, attribute = name.rpartition(".")
        suffixes = {"weight": f"{layer}.diff", "bias": f"{layer}.diff_b"}
        key = parse_key(f"transformer.{suffixes.get(attribute, f'{name}.diff')}")
        assert key is not None, name
        assert parameter_name(key) == name


Q = "diffusion_model.blocks.0.self_attn.q"


def without(*keys: str) -> Tensors:
    return {key: tensor for key, tensor in lightx2v_like().items() if key not in keys}


def pair_of(name: str, down: tuple[int, ...], up: tuple[int, ...]) -> Tensors:
    return {f"{name}.lora_down.weight": torch.ones(down), f"{name}.lora_up.weight": torch.ones(up)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without() | {f"{Q}.lora_sideways.weight": torch.ones(2)}, rf"unknown keys: {Q}\.lora_sideways\.weight$"),
        (without() | {"diffusion_model.blocks.0.tail.diff": torch.ones(2)}, r"unknown keys: .*blocks\.0\.tail\.diff"),
        (without(f"{Q}.lora_up.weight"), rf"{Q}\.lora_down\.weight: the other half of the pair is missing"),
        (without(f"{Q}.lora_down.weight"), rf"{Q}\.lora_up\.weight: the other half of the pair is missing"),
        ({f"{Q}.alpha": torch.tensor(4.0)}, rf"{Q}\.alpha: has no low-rank pair"),
        (pair_of(Q, (4, WIDTH), (WIDTH, 3)), r"ranks of the pair do not agree: .*\[4, 32\], .*\[32, 3\]"),
        (pair_of(Q, (0, WIDTH), (WIDTH, 0)), "ranks of the pair do not agree"),
        (pair_of(Q, (4,), (WIDTH, 4)), "ranks of the pair do not agree"),
        (pair_of(Q, (4, WIDTH), (WIDTH, 4)) | {f"{Q}.alpha": torch.ones(2)}, r"alpha: must be one number \(got \[2\]"),
        (without() | {f"{Q}.diff": torch.ones(WIDTH, WIDTH)}, rf"{Q}\.diff and .* are for the same weight"),
        (
            without() | {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, WIDTH)},
            "lora_down.weight and transformer.* are for the same weight",
        ),
        (
            without() | {f"{Q}.lora_up.weight": torch.full((WIDTH, RANK), torch.nan)},
            rf"{Q}\.lora_up\.weight: holds NaN",
        ),
        (without() | {f"{Q}.diff_b": torch.ones(WIDTH, dtype=torch.int32)}, r"diff_b: must be floating point"),
        (without() | {f"{Q}.dora_scale": torch.ones(WIDTH, 1)}, r"dora_scale: DoRA is not supported"),
        ({"transformer.blocks.0.attn1.to_q.lora_magnitude_vector": torch.ones(WIDTH)}, "DoRA is not supported"),
        ({f"{Q}.hada_w1_a": torch.ones(4, 4)}, "LoHa is not supported"),
        ({"lora_unet_blocks_0_self_attn_q.lokr_w1": torch.ones(4, 4)}, "LoKr is not supported"),
        (
            pair_of("transformer.single_transformer_blocks.0.attn.to_q", (4, WIDTH), (WIDTH, 4)),
            "is no LoRA for a Wan transformer; its keys are transformer.single_transformer_blocks",
        ),
        ({}, "holds no tensors"),
    ],
)
def test_files_that_are_refused(tmp_path, tensors, message):
    path = write(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_lora(path)
    assert str(path) in str(raised.value)


def test_damaged_files_are_refused(tmp_path):
    path = write_style(tmp_path, "comfy")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(path)):
        read_lora(path)
    with pytest.raises(CheckpointError, match="nowhere"):
        read_lora(tmp_path / "nowhere.safetensors")


def test_pickled_files_and_open_ones_are_read_alike(tmp_path):
    path = write_style(tmp_path, "musubi")
    torch.save(STYLES["musubi"](), tmp_path / "x.pt")
    results = [read_lora(source) for source in (path, tmp_path / "x.pt", open_tensors([path]))]
    models = [make_model() for _ in results]
    for model, lora in zip(models, results, strict=True):
        fuse(model, lora)
    assert all(torch.equal(forward(models[0]), forward(model)) for model in models[1:])


def test_dora_in_the_settings_is_refused(tmp_path):
    path = write(tmp_path / "x.safetensors", in_diffusers_style(), SETTINGS | {"transformer.use_dora": True})
    with pytest.raises(CheckpointError, match="use_dora: DoRA is not supported"):
        read_lora(path)


@pytest.mark.parametrize("apply", [fuse, HotLora])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_head_dim": WIDTH},
            r"wrong shape: diffusion_model\.\S+ \[32, 32\] for a layer of \[64, 64\].* more",
        ),
        ({"ffn_dim": 64}, r"wrong shape: diffusion_model\.blocks\.0\.ffn\.0\.lora_up\.weight \[48, 32\]"),
        ({"num_layers": 1}, r"no such layer: diffusion_model\.blocks\.1\.\S+, .* and \d+ more"),
    ],
)
def test_a_lora_for_another_model_is_refused_and_changes_nothing(tmp_path, changes, message, apply):
    lora = read_lora(write_style(tmp_path, "comfy"))
    model = make_model(**changes)
    before = forward(model)
    with pytest.raises(CheckpointError, match=f"is for another model than this WanTransformer3DModel: {message}"):
        apply(model, lora)
    assert torch.equal(forward(model), before)


def test_a_lora_that_fits_no_layer_is_refused(tmp_path):
    lora = read_lora(write(tmp_path / "x.safetensors", picture_keys()))
    with pytest.raises(CheckpointError, match=r"x\.safetensors: fits no layer of this WanTransformer3DModel: .* more"):
        fit(lora, make_model())


def in_fp8(linear: nn.Linear) -> nn.Module:
    scale = linear.weight.abs().amax(dim=1, keepdim=True) / 448
    return QuantisedLinear(linear, (linear.weight / scale).to(torch.float8_e4m3fn), scale, torch.float32)


def in_gguf_blocks(linear: nn.Linear) -> nn.Module:
    blocks = gguf.quants.quantize(linear.weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    return GgufLinear(linear, torch.from_numpy(blocks), "Q8_0", torch.float32)


def quantise(model: Any, kind: Callable[[nn.Linear], nn.Module]) -> None:
    for block in model.blocks:
        block.attn1.to_q = kind(block.attn1.to_q)


def test_quantised_layers_are_quantised_anew(tmp_path):
    lora = read_lora(write_style(tmp_path, "comfy"))
    model = make_model()
    quantise(model, in_fp8)
    layer = model.blocks[0].attn1.to_q
    before = layer.dequantise()
    fuse(model, lora, STRENGTH)
    wanted = before + STRENGTH * lora.additions["blocks.0.attn1.to_q.weight"].dense(CPU)
    assert layer.codes.dtype == torch.float8_e4m3fn
    # three bits of mantissa: half a step is a sixteenth of the value
    assert ((layer.dequantise() - wanted).abs() <= wanted.abs() / 16 + 1e-4).all()
    assert difference(before, wanted) > 0.1


def test_quantised_layers_that_cannot_change_take_it_only_hot(tmp_path):
    lora = read_lora(write_style(tmp_path, "comfy"))
    model = make_model()
    quantise(model, in_gguf_blocks)
    before = forward(model)
    refusal = r"cannot be fused into quantised weights: blocks\.0\.attn1\.to_q\.weight \(GgufLinear\), .*to_q.*hot"
    with pytest.raises(CheckpointError, match=refusal):
        fuse(model, lora)
    assert torch.equal(forward(model), before)
    hot = HotLora(model, lora, STRENGTH)
    assert difference(forward(model), forward(fused(lora.path))) < 0.02
    assert difference(forward(model), before) > 0.05
    hot.remove()
    assert torch.equal(forward(model), before)


HIGH = LoraFile("lightx2v/Wan2.2-Distill-Loras", "loras/high.safetensors", "high", 1.0)
LOW = LoraFile("lightx2v/Wan2.2-Distill-Loras", "low.safetensors", "low", 0.5)


def fast_profile(*loras: LoraFile) -> Profile:
    return replace(load_profile("tiny", CONFIGS), preset="fast", loras=loras)


def two_experts() -> Experts:
    return Experts(make_model(), make_model(), boundary=0.9)


def write_both(folder: Path) -> None:
    write(folder / "some" / "where" / "high.safetensors", lightx2v_like() | picture_keys())
    write(folder / "low.safetensors", STYLES["musubi"]())


def test_each_expert_gets_its_own_file(tmp_path):
    write_both(tmp_path)
    experts = two_experts()
    high, low = apply_loras(experts, fast_profile(HIGH, LOW), tmp_path, "fused")
    assert (high.path, high.expert, high.strength) == (tmp_path / "some/where/high.safetensors", "high", 1.0)
    assert (low.path, low.expert, low.strength, low.left_out) == (tmp_path / "low.safetensors", "low", 0.5, ())
    assert low.parameters == len(pairs())
    assert len(high.left_out) == len(read_lora(write(tmp_path / "p" / "p.safetensors", picture_keys())).additions)
    assert torch.equal(forward(experts.high), forward(fused(high.path, 1.0)))
    assert torch.equal(forward(experts.low), forward(fused(low.path, 0.5)))


def test_hot_files_can_be_taken_off(tmp_path):
    write_both(tmp_path)
    experts = two_experts()
    before = forward(experts.high)
    applied = apply_loras(experts, fast_profile(HIGH, LOW), tmp_path, "hot")
    assert difference(forward(experts.high), before) > 0.05
    for one in applied:
        assert one.hot is not None
        one.hot.remove()
    assert torch.equal(forward(experts.high), before)


def test_missing_files_are_all_named_with_the_command_that_fetches_them(tmp_path):
    with pytest.raises(CheckpointError) as raised:
        apply_loras(two_experts(), fast_profile(HIGH, LOW), tmp_path, "fused")
    message = str(raised.value)
    for lora in (HIGH, LOW):
        assert f"{lora.file} of {lora.repository}" in message
    assert "wanbox weights get tiny --preset fast" in message


def test_a_bad_second_file_leaves_the_first_expert_alone(tmp_path):
    write_both(tmp_path)
    write(tmp_path / "low.safetensors", pair_of("blocks.0.self_attn.q", (4, 64), (64, 4)))
    experts = two_experts()
    before = forward(experts.high)
    with pytest.raises(CheckpointError, match=r"low\.safetensors: is for another model"):
        apply_loras(experts, fast_profile(HIGH, LOW), tmp_path, "fused")
    assert torch.equal(forward(experts.high), before)


def test_a_second_expert_that_cannot_be_fused_leaves_the_first_alone(tmp_path):
    write_both(tmp_path)
    experts = two_experts()
    quantise(experts.low, in_gguf_blocks)
    before = forward(experts.high)
    with pytest.raises(CheckpointError, match=r"low\.safetensors: cannot be fused into quantised weights: .*added hot"):
        apply_loras(experts, fast_profile(HIGH, LOW), tmp_path, "fused")
    assert torch.equal(forward(experts.high), before)


def test_auto_fuses_into_plain_weights_and_leaves_quantised_ones(tmp_path):
    write_both(tmp_path)
    experts = two_experts()
    quantise(experts.low, in_fp8)
    before = forward(experts.low)
    high, low = apply_loras(experts, fast_profile(HIGH, LOW), tmp_path)
    assert high.hot is None
    assert torch.equal(forward(experts.high), forward(fused(high.path, 1.0)))
    assert low.hot is not None
    assert difference(forward(experts.low), before) > 0.05
    low.hot.remove()
    assert torch.equal(forward(experts.low), before)


def test_a_file_for_an_expert_that_is_not_there(tmp_path):
    write_both(tmp_path)
    with pytest.raises(CheckpointError, match=r"tiny: low\.safetensors is for the low-noise expert"):
        apply_loras(Experts(make_model()), fast_profile(LOW), tmp_path, "fused")


def test_where_files_are_found(tmp_path):
    lora = LoraFile("a/b", "seko/high_noise_model.safetensors")
    assert find_lora(lora, tmp_path) is None
    only = write(tmp_path / "x" / "high_noise_model.safetensors", {"a": torch.ones(1)})
    assert find_lora(lora, tmp_path) == only
    same = tmp_path / "link.d" / "high_noise_model.safetensors"
    same.parent.mkdir()
    same.symlink_to(only)
    assert find_lora(lora, tmp_path) is not None
    other = write(tmp_path / "y" / "high_noise_model.safetensors", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match=rf"several files could be seko/high_noise_model\.safetensors: .*{other}"):
        find_lora(lora, tmp_path)
    exact = write(tmp_path / "z" / "seko" / "high_noise_model.safetensors", {"a": torch.ones(1)})
    assert find_lora(lora, tmp_path) == exact
    usual = write(tmp_path / "loras" / "high_noise_model.safetensors", {"a": torch.ones(1)})
    assert find_lora(lora, tmp_path) == usual
