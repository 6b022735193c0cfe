"""Weights that come and go: the same numbers to the bit as resident ones, never more on the device than promised.

On a CPU "the device" is other memory than the weights' home; the code is the one that runs on CUDA.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn

from tiny_checkpoint import CONCAT, ONE_PICTURE, TWO_EXPERTS, VACE, folder_configs
from wan_pipelines import fitting
from wan_pipelines.activations import Sample, denoise_bytes
from wan_pipelines.clip_vision import embed_pictures
from wan_pipelines.conditioning import Conditioning, condition_video
from wan_pipelines.denoise import Guidance, denoise
from wan_pipelines.errors import PlacementError
from wan_pipelines.fitting import Job, fit
from wan_pipelines.footprint import count_part, footprint
from wan_pipelines.load import load_checkpoint
from wan_pipelines.offload import Keeper, blocks_of, measure, parts_of, put, to_fp8
from wan_pipelines.placement import HOST_RESERVE, choose, largest_plan
from wan_pipelines.samplers import make_sampler
from wan_pipelines.streaming import Ferry, Streamer, streamed_bytes, tensors_of
from wan_pipelines.text import encode_text
from wan_pipelines.vae import encode_frames, stream_decode
from wan_pipelines.vae_memory import decode_bytes, encode_bytes

pytest_plugins = ("pipeline_fixtures",)
CPU = torch.device("cpu")
OFFLOADS = ("offload_parts", "offload_layers")
MOVES = ("offload_layers", "offload_text", "offload_parts", "resident")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def fresh(tiny):
    """A checkpoint of its own, whose weights may be moved and changed.

    They are copied out of the mapped files: there they lie at any address, and a CPU's kernels round differently
    where memory is not aligned. What the allocator gives is aligned, on the device too.
    """

    def load(spec, dtype="float32"):
        model = tiny(spec)
        with torch.inference_mode(False):  # as a worker loads
            checkpoint = load_checkpoint(model.profile, model.folder, CPU, dtype)
            for module in parts_of(checkpoint).values():
                for tensor in tensors_of(module):
                    tensor.data = tensor.data.clone()
        return checkpoint

    return load


def make_transformer(seed=0, **changes) -> WanTransformer3DModel:
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 96,
        "num_layers": 5,
    }
    torch.manual_seed(seed)
    return WanTransformer3DModel(**{**settings, **changes}).eval().requires_grad_(False)


def forward(model, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, model.config["in_channels"], 3, 8, 8, generator=generator).to(device, model.dtype)
    text = torch.randn(1, 7, model.config["text_dim"], generator=generator).to(device, model.dtype)
    return model(latents, torch.tensor([400.0], device=device), text, return_dict=False)[0]


def places(module: nn.Module) -> list[int]:
    """Where the weights lie."""
    return [tensor.data_ptr() for tensor in tensors_of(module)]


def streamer_of(model) -> Streamer:
    blocks = blocks_of(model)
    return Streamer(blocks, CPU, Ferry(CPU, max(map(streamed_bytes, blocks))))


# --- the ferry


@pytest.mark.parametrize("size", [256, 1024, 1 << 20])
def test_a_ferry_brings_tensors_of_any_kind_whole(size):
    """Also those that are larger than its halves, have no dimensions, no elements or another layout."""
    sources = [
        torch.randn(37, 11),
        torch.randn(500).bfloat16(),
        torch.randn(64, 33).to(torch.float8_e4m3fn),
        torch.arange(300, dtype=torch.int8),
        torch.tensor(3.5),
        torch.empty(0, 4),
        torch.randn(9, 50).T,
    ]
    targets = [torch.empty(source.shape, dtype=source.dtype) for source in sources]
    ferry = Ferry(CPU, size)
    for _ in range(2):
        ferry.wait(ferry.carry(zip(sources, targets, strict=True)))
    pairs = list(zip(sources, targets, strict=True))
    assert all(torch.equal(a.float(), b.float()) and a.data_ptr() != b.data_ptr() for a, b in pairs if a.numel())


# --- blocks


@torch.inference_mode()
def test_streamed_blocks_give_the_same_to_the_bit():
    model = make_transformer()
    expected = [forward(model, seed) for seed in range(3)]
    streamer = streamer_of(model)
    assert all(torch.equal(forward(model, seed), expected[seed]) for seed in range(3))
    streamer.stop()
    assert torch.equal(forward(model, 1), expected[1])


@torch.inference_mode()
def test_never_more_than_two_blocks_are_on_the_device():
    model = make_transformer()
    homes = [places(block) for block in model.blocks]
    at_work, storages = [], set()
    streamer = streamer_of(model)

    def look(*_):
        away = [index for index, block in enumerate(model.blocks) if places(block) != homes[index]]
        at_work.append(away)
        storages.update(t.untyped_storage().data_ptr() for i in away for t in tensors_of(model.blocks[i]))

    hooks = [block.register_forward_pre_hook(look) for block in model.blocks]
    forward(model)
    forward(model)
    for hook in hooks:
        hook.remove()
    assert at_work == 2 * [[0], [1], [2], [3], [4]]  # only the one that computes is not at home
    assert len(storages) == 2
    assert [places(block) for block in model.blocks] == homes
    streamer.stop()


@torch.inference_mode()
def test_a_model_shows_its_own_weights_between_turns():
    """Whoever saves, changes or inspects the model sees what is in host memory; a change counts at once."""
    model = make_transformer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    streamer = streamer_of(model)
    forward(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    streamer.stop()
    model.get_parameter("blocks.3.ffn.net.2.weight").mul_(1.5)  # as fusing a LoRA does
    doubled = nn.Parameter(before["blocks.2.attn1.to_q.weight"] * 2, requires_grad=False)
    model.get_submodule("blocks.2.attn1.to_q").register_parameter("weight", doubled)
    expected = forward(model)
    streamer = streamer_of(model)
    assert torch.equal(forward(model), expected)
    streamer.stop()


@torch.inference_mode()
def test_blocks_out_of_order_are_waited_for():
    model = make_transformer()
    states = torch.randn(1, 6, 64)
    run = lambda block: block(states, torch.ones(1, 4, 64), torch.ones(1, 6, 64), None)  # noqa: E731
    order = [3, 0, 0, 4, 2, 1]
    expected = [run(model.blocks[index]) for index in order]
    streamer = streamer_of(model)
    assert all(torch.equal(run(model.blocks[index]), right) for index, right in zip(order, expected, strict=True))
    streamer.stop()


@pytest.mark.parametrize("broken", [0, 2, 4])
@torch.inference_mode()
def test_an_error_in_the_middle_leaves_the_model_usable(broken):
    model = make_transformer()
    expected, homes = forward(model), places(model)
    streamer = streamer_of(model)

    def fail(*_):
        raise RuntimeError("out of memory, say")

    hook = model.get_submodule(f"blocks.{broken}.ffn").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        forward(model)
    hook.remove()
    assert places(model) == homes
    assert torch.equal(forward(model), expected)
    streamer.stop()
    assert places(model) == homes
    assert torch.equal(forward(model), expected)


@torch.inference_mode()
def test_blocks_of_different_layout_share_the_two_places(fresh):
    """VACE: the second stack runs first, with projections that the others do not have."""
    model = fresh(VACE).experts.high
    assert len({streamed_bytes(block) for block in blocks_of(model)}) > 1
    latents, control = torch.randn(1, 16, 3, 8, 8), torch.randn(1, 96, 3, 8, 8)

    def run():
        text = torch.ones(1, 4, 32)
        return model(latents, torch.ones(1), text, control_hidden_states=control, return_dict=False)[0]

    expected = run()
    streamer = streamer_of(model)
    assert torch.equal(run(), expected)
    assert torch.equal(run(), expected)
    streamer.stop()


@torch.inference_mode()
def test_weights_in_fp8_travel_with_their_scales():
    model = make_transformer()
    exact = forward(model)
    to_fp8(model)
    settings = {**dict(model.config), "_class_name": "WanTransformer3DModel"}
    predicted = count_part("transformer", settings, "float32", fp8=True)
    assert [sum(p.nbytes for p in block.parameters()) for block in model.blocks] == list(predicted.blocks)
    expected = forward(model)
    assert 0 < (expected - exact).norm() / exact.norm() < 0.1
    streamer = streamer_of(model)
    assert torch.equal(forward(model), expected)
    streamer.stop()


def add_offset(module: torch.nn.Module, _given: tuple, output: torch.Tensor) -> torch.Tensor:
    return output + module.get_buffer("offset")


@torch.inference_mode()
def test_buffers_travel_too():
    model = make_transformer(num_layers=3)
    for index, block in enumerate(model.blocks):
        block.register_buffer("offset", torch.full((64,), 0.1 * (index + 1)))
        block.register_forward_hook(add_offset)
    expected = forward(model)
    blocks = blocks_of(model)
    streamer = Streamer(blocks, CPU, Ferry(CPU, 512))  # and a ferry that is too small costs time only
    assert torch.equal(forward(model), expected)
    streamer.stop()


# --- parts


def run_stages(keeper, checkpoint, plan_sigmas=(1.0, 0.95, 0.5, 0.0)):
    """Every stage of a job, as the renderer does them: text, CLIP, latents of the condition, video, frames."""
    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    with keeper.stage("text"):
        text = encode_text(checkpoint.tokenizer, checkpoint.text_encoder, "a cat runs", 512).states
    image = None
    if checkpoint.image_encoder is not None:
        with keeper.stage("image"):
            image = embed_pictures(checkpoint.image_encoder, picture)
    with keeper.stage("encode"):
        known = encode_frames(checkpoint.vae, condition_video(picture, None, 9))
    mask = torch.ones(1, 4, *known.shape[2:])
    conditions = Conditioning(text, -text, concat=torch.cat([mask, known], dim=1), image=image)
    noise = torch.randn(known.shape, generator=generator)
    with keeper.stage("denoise"):
        sampler = make_sampler("unipc", plan_sigmas)
        latents = denoise(checkpoint.experts, noise, conditions, sampler, Guidance(3.0, 3.0), lambda *_: None)
    with keeper.stage("decode"):
        frames = torch.cat(list(stream_decode(checkpoint.vae, latents)))
    return known, latents, frames


@pytest.mark.parametrize("residence", ["offload_text", *OFFLOADS])
@pytest.mark.parametrize("spec", [TWO_EXPERTS, ONE_PICTURE], ids=["two experts", "clip"])
@torch.inference_mode()
def test_a_job_gives_the_same_to_the_bit_however_it_is_kept(fresh, spec, residence):
    checkpoint = fresh(spec)
    expected = run_stages(Keeper(checkpoint, "resident", CPU), checkpoint)
    homes = {name: places(module) for name, module in parts_of(checkpoint).items()}
    keeper = Keeper(checkpoint, residence, CPU)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(run_stages(keeper, checkpoint), expected, strict=True))
    assert {name: places(module) for name, module in parts_of(checkpoint).items()} == homes


@pytest.mark.parametrize("residence", OFFLOADS)
@torch.inference_mode()
def test_of_two_experts_only_the_one_that_computes_is_on_the_device(fresh, residence):
    checkpoint = fresh(TWO_EXPERTS)
    experts = {"high": checkpoint.experts.high, "low": checkpoint.experts.low}
    homes = {name: places(model) for name, model in experts.items()}
    seen = []

    def look(*_):
        seen.append([name for name, model in experts.items() if places(model) != homes[name]])

    for model in experts.values():
        model.patch_embedding.register_forward_pre_hook(look)
    run_stages(Keeper(checkpoint, residence, CPU), checkpoint)
    assert seen == [["high"], ["high"], ["high"], ["high"], ["low"], ["low"]]  # guided: two forwards for each step


@pytest.mark.parametrize(
    ("residence", "comes"),
    [
        ("offload_parts", {"text": "text_encoder", "image": "image_encoder", "encode": "vae", "decode": "vae"}),
        ("offload_text", {"text": "text_encoder", "image": "image_encoder", "encode": None, "decode": None}),
        ("resident", {"text": None, "image": None, "encode": None, "decode": None}),
    ],
)
@torch.inference_mode()
def test_what_computes_comes_to_the_device_and_nothing_else(fresh, residence, comes):
    checkpoint = fresh(ONE_PICTURE)
    parts = parts_of(checkpoint)
    homes = {name: places(module) for name, module in parts.items()}
    keeper = Keeper(checkpoint, residence, CPU)

    def away():
        return {name for name, module in parts.items() if places(module) != homes[name]}

    for stage, part in comes.items():
        with keeper.stage(stage):
            assert away() == ({part} if part else set())
        assert away() == set()


@pytest.mark.parametrize("residence", OFFLOADS)
@torch.inference_mode()
def test_an_error_in_a_stage_sends_everything_home(fresh, residence):
    checkpoint = fresh(TWO_EXPERTS)
    homes = {name: places(module) for name, module in parts_of(checkpoint).items()}
    keeper = Keeper(checkpoint, residence, CPU)
    expected = run_stages(keeper, checkpoint)

    def fail(*_):
        raise RuntimeError("cancelled")

    for broken in (checkpoint.experts.low.blocks[1].attn2, checkpoint.text_encoder.encoder.block[1]):
        hook = broken.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="cancelled"):
            run_stages(keeper, checkpoint)
        hook.remove()
        assert {name: places(module) for name, module in parts_of(checkpoint).items()} == homes
    assert all(torch.equal(a, b) for a, b in zip(run_stages(keeper, checkpoint), expected, strict=True))


def test_a_stage_inside_a_stage_is_a_mistake(fresh):
    keeper = Keeper(fresh(CONCAT), "offload_parts", CPU)
    with keeper.stage("encode"):
        with pytest.raises(RuntimeError, match="stage text inside stage encode"), keeper.stage("text"):
            pass
        assert places(keeper.parts["vae"])
    with keeper.stage("text"):
        pass


@torch.inference_mode()
def test_keeping_can_change_between_jobs(fresh):
    checkpoint = fresh(CONCAT)
    keeper = Keeper(checkpoint, "resident", CPU)
    expected = run_stages(keeper, checkpoint)
    for residence in MOVES:
        keeper.move(residence)
        assert all(torch.equal(a, b) for a, b in zip(run_stages(keeper, checkpoint), expected, strict=True))
    keeper.rest()
    assert all(torch.equal(a, b) for a, b in zip(run_stages(keeper, checkpoint), expected, strict=True))


@torch.inference_mode()
def test_two_models_that_share_parts_do_not_disturb_each_other(fresh):
    first = fresh(CONCAT)
    second = replace(fresh(CONCAT), text_encoder=first.text_encoder, vae=first.vae)
    expected = run_stages(Keeper(first, "resident", CPU), first)
    keepers = [Keeper(first, "offload_layers", CPU), Keeper(second, "resident", CPU)]
    for _ in range(2):
        for keeper, checkpoint in zip(keepers, (first, second), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(run_stages(keeper, checkpoint), expected, strict=True))


# --- from a placement


def needs_of(model, dtype="float32"):
    return footprint(folder_configs(model.folder), model.profile, dtype)


@torch.inference_mode()
def test_a_placement_is_performed(tiny, fresh):
    model, checkpoint = tiny(TWO_EXPERTS), fresh(TWO_EXPERTS)
    plan = replace(largest_plan(model.profile), sample_frames=9)
    needs = needs_of(model)
    exact = run_stages(put(checkpoint, choose(needs, plan, 10**12, None, "offload_layers"), CPU), checkpoint)
    keeper = put(checkpoint, choose(needs, plan, 10**12, None, "fp8_offload_layers"), CPU)
    assert keeper.residence == "offload_layers"
    rounded = run_stages(keeper, checkpoint)
    assert torch.equal(rounded[0], exact[0])
    assert 0 < (rounded[1] - exact[1]).norm() / exact[1].norm() < 0.2
    measured = measure(needs, checkpoint)
    assert measured.fp8 is True
    assert put(checkpoint, choose(measured, plan, 10**12, None), CPU).residence == "resident"  # not quantised again


def test_measured_bytes_are_the_predicted_ones_and_buffers(tiny, fresh):
    model = tiny(TWO_EXPERTS)
    needs, checkpoint = needs_of(model), fresh(TWO_EXPERTS)
    measured = measure(needs, checkpoint)
    assert measured.fp8 is False
    for name, part in measured.parts.items():
        buffers = sum(buffer.nbytes for buffer in parts_of(checkpoint)[name].buffers())
        assert (part.parameters, part.bytes, part.blocks) == (
            needs.parts[name].parameters,
            needs.parts[name].bytes + buffers,
            needs.parts[name].blocks,
        )


def test_a_job_is_fitted_into_the_memory_there_is(tiny, fresh, monkeypatch):
    """Free memory is made up, and with it which weights are on a device: there is none here."""
    model, checkpoint = tiny(TWO_EXPERTS), fresh(TWO_EXPERTS)
    needs = measure(needs_of(model), checkpoint)
    plan = replace(largest_plan(model.profile), sample_frames=9)
    keeper = Keeper(checkpoint, "resident", CPU)
    assert fit(keeper, needs, plan, Job()).mode == "resident"  # no GPU, nothing to fit into
    monkeypatch.setattr(Keeper, "on_device", lambda *_, **__: 0)
    enough = choose(needs, plan, 10**12, None).verdicts[-1].device
    for room, mode in ((enough, "resident"), (enough - 1, "offload_parts"), (enough, "resident")):
        monkeypatch.setattr(fitting, "free_device", lambda _, room=room: room)
        assert fit(keeper, needs, plan, Job()).mode == keeper.residence == mode
    assert fit(keeper, needs, plan, Job("offload_layers")).mode == keeper.residence == "offload_layers"
    monkeypatch.setattr(fitting, "free_device", lambda _: 10**6)
    with pytest.raises(PlacementError, match=r"not enough memory for .* free are 0.0 GB on the device"):
        fit(keeper, needs, plan, Job())
    assert keeper.residence == "offload_layers"


def test_weights_on_the_device_count_as_free_but_need_room_in_host_memory_to_leave(tiny, fresh, monkeypatch):
    model, checkpoint = tiny(TWO_EXPERTS), fresh(TWO_EXPERTS)
    needs = measure(needs_of(model), checkpoint)
    plan = replace(largest_plan(model.profile), sample_frames=9)
    keeper = Keeper(checkpoint, "resident", CPU)
    own = sum(part.bytes for part in needs.parts.values())
    assert keeper.on_device() == own
    assert keeper.on_device(but=("vae", "transformer", "transformer_2")) == needs.parts["text_encoder"].bytes
    enough = choose(needs, plan, 10**12, None).verdicts[-1].device
    monkeypatch.setattr(fitting, "free_device", lambda _: enough - own)
    assert fit(keeper, needs, plan, Job()).mode == "resident"
    monkeypatch.setattr(fitting, "free_host", lambda: HOST_RESERVE + own)
    assert fit(keeper, needs, plan, Job("offload_parts")).mode == "offload_parts"
    monkeypatch.setattr(fitting, "free_host", lambda: HOST_RESERVE + own - 1)
    with pytest.raises(PlacementError, match=r"GB of weights would go to host memory, where 2\.2 GB are free"):
        fit(keeper, needs, plan, Job("offload_parts"))


def test_other_models_leave_when_nothing_fits_beside_them(tiny, fresh, monkeypatch):
    model, checkpoint = tiny(TWO_EXPERTS), fresh(TWO_EXPERTS)
    needs = measure(needs_of(model), checkpoint)
    plan = replace(largest_plan(model.profile), sample_frames=9)
    keeper, other = Keeper(checkpoint, "resident", CPU), Keeper(fresh(CONCAT), "resident", CPU)
    room = [10**6]
    monkeypatch.setattr(fitting, "free_device", lambda _: room[0])
    monkeypatch.setattr(Keeper, "rest", lambda self: room.append(room.pop() + 10**12) if self is other else None)
    assert fit(keeper, needs, plan, Job(others=[other])).mode == "resident"
    assert room == [10**12 + 10**6]


def test_host_memory_that_is_free_is_known():
    free = fitting.free_host()
    assert free is not None
    assert 2**20 < free < 2**50


def test_a_container_s_limit_counts(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable:     1000 kB\n")
    assert fitting.free_host(tmp_path) == 1_024_000
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("600000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 50000\n")
    assert fitting.free_host(tmp_path) == 1_024_000
    (group / "memory.max").write_text("900000\n")
    assert fitting.free_host(tmp_path) == 350_000
    assert fitting.free_host(tmp_path / "elsewhere") is None


# --- on a GPU: predictions and streams


def measured_peak(work) -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def large_transformer(layers, **changes) -> WanTransformer3DModel:
    """Full width and random weights in the loaders' dtypes, few layers: what is alive in one block is the same."""
    sizes = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "text_dim": 4096}
    with torch.device("cuda"):
        model = WanTransformer3DModel(**{**sizes, "num_layers": layers, "in_channels": 36, **changes}).eval()
    for path, parameter in model.named_parameters():
        if not set(model._keep_in_fp32_modules or ()) & set(path.split(".")):
            parameter.data = parameter.data.bfloat16()
    return model.requires_grad_(False)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize(("name", "latent"), [("14b", (21, 90, 160)), ("14b", (21, 60, 104)), ("5b", (31, 44, 80))])
@torch.inference_mode()
def test_cuda_asks_for_what_is_predicted_in_a_forward(name, latent):
    """Within 10 %, the latents around the forward apart: they are not there."""
    five = {"num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
    model = large_transformer(2, **(five if name == "5b" else {}))
    settings = dict(model.config)
    tokens = latent[0] * latent[1] * latent[2] // 4
    hidden = torch.randn(1, settings["in_channels"], *latent, device="cuda", dtype=torch.bfloat16)
    text = torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
    timestep = torch.full((1, tokens), 500.0, device="cuda") if name == "5b" else torch.full((1,), 500.0, device="cuda")
    model(hidden, timestep, text)  # workspaces
    peak = measured_peak(lambda: model(hidden, timestep, text))
    sample = Sample(latent, 512, 2, per_token=name == "5b")
    channels = 6 * settings["out_channels"] + settings["in_channels"] - settings["out_channels"]
    around = (channels * 4 + settings["in_channels"] * 2) * tokens * 4 + 2 * 512 * 4096 * 2
    assert peak == pytest.approx(denoise_bytes(settings, sample) - around, rel=0.1)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("size", [(832, 480), (1280, 720)])
@torch.inference_mode()
def test_cuda_asks_for_what_is_predicted_in_the_autoencoder(size):
    """Not less than 90 %; at most 110 % and cuDNN's workspace, for which the margin has room: one more layout of
    the largest convolution's input and output."""
    with torch.device("cuda"):
        vae = AutoencoderKLWan().eval()
    settings, (width, height) = dict(vae.config), size
    latents = torch.randn(1, 16, 4, height // 8, width // 8, device="cuda")
    picture = torch.rand(1, 3, height, width, device="cuda")
    workspace = 2.5 * 96 * 4 * width * height * 4

    def decode():
        for _ in stream_decode(vae, latents):
            pass

    for work, predicted in (
        (decode, decode_bytes(settings, width, height, 4)),
        (lambda: encode_frames(vae, condition_video(picture, None, 17)), encode_bytes(settings, width, height, 1, 17)),
    ):
        peak = measured_peak(work)
        assert 0.9 * predicted <= peak <= 1.1 * predicted + workspace


@pytest.mark.gpu
@GPU
@torch.inference_mode()
def test_cuda_streams_blocks_with_the_same_result_and_two_blocks_of_memory():
    model = large_transformer(6, num_attention_heads=12, ffn_dim=8960)
    hidden = torch.randn(1, 36, 5, 60, 104, device="cuda", dtype=torch.bfloat16)
    text = torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
    run = lambda: model(hidden, torch.full((1,), 500.0, device="cuda"), text, return_dict=False)[0]  # noqa: E731
    expected = [run().clone() for _ in range(2)]
    resident = measured_peak(run)
    blocks = blocks_of(model)
    size = max(map(streamed_bytes, blocks))
    for block in blocks:
        block.to("cpu")
    ferry = Ferry(torch.device("cuda"), size)
    streamed = []

    def stream():
        streamer = Streamer(blocks, torch.device("cuda"), ferry)
        streamed.extend(run().clone() for _ in range(2))
        streamer.stop()

    peak = measured_peak(stream)
    assert all(torch.equal(a, b) for a, b in zip(streamed, expected, strict=True))
    assert peak == pytest.approx(resident + 2 * size, rel=0.1)
