"""Two chained clips with the way through the autoencoder between them, against the published loop as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file
from torch import Tensor

import weight_files as files
from s2v_golden import CHANNELS, GUIDANCE, TEXT_LEN
from s2v_golden_loop import (
    CLIP_FRAMES,
    CLIPS,
    HEIGHT,
    KEPT,
    LOOP,
    NOISE_SEED,
    VAE_BLOCKS,
    VAE_DIM,
    WIDTH,
    loop_inputs,
    vae_weights,
)
from test_s2v_model import golden_model
from wan_pipelines.conditioning import Conditioning
from wan_pipelines.denoise import Experts, Guidance, denoise
from wan_pipelines.s2v.chain_render import ChainRender
from wan_pipelines.s2v.clips import Chain, ChainSpec, Clip, make_chain
from wan_pipelines.samplers import make_sampler
from wan_pipelines.vae import encode_frames
from wan_pipelines.weights.keys import renamer

#: in latents, whose standard deviation is 2.2, and in pixels from -1 to 1
LIMIT = 1e-3


@pytest.fixture(scope="module")
def ours() -> Iterator[dict[str, Tensor]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield made_by_us()
    torch.set_num_threads(threads)


def golden_vae() -> AutoencoderKLWan:
    """diffusers' class with the weights of the published one, which are drawn under its names."""
    vae = AutoencoderKLWan(base_dim=VAE_DIM, z_dim=CHANNELS, num_res_blocks=VAE_BLOCKS).eval()
    state = vae.state_dict()
    shapes = {files.vae_name(name, VAE_BLOCKS, nested=False): tuple(value.shape) for name, value in state.items()}
    rename = renamer("vae", shapes)
    vae.load_state_dict({str(rename(name)): value for name, value in vae_weights(shapes).items()})
    return vae


def made_by_us() -> dict[str, Tensor]:
    """Motion, latents and a part of the frames of the second clip."""
    inputs, golden = loop_inputs(), load_file(LOOP)
    model, vae = golden_model(), golden_vae()

    def padded(text: Tensor) -> Tensor:
        return torch.nn.functional.pad(text, (0, 0, 0, TEXT_LEN - len(text)))[None]

    def sample(clip: Clip, told: Conditioning) -> Tensor:
        shape = (1, CHANNELS, clip.latent_frames, HEIGHT // 8, WIDTH // 8)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(clip.seed))
        sampler = make_sampler("unipc", golden["sigmas"].tolist())
        guidance = Guidance(GUIDANCE, GUIDANCE)
        return denoise(Experts(model), noise, told, sampler, guidance, lambda done, latents: None)

    picture = inputs["picture"].permute(2, 0, 1)[None, :, None] / 255 * 2 - 1
    told = Conditioning(padded(inputs["text"]), padded(inputs["negative"]), audio=inputs["audio"])
    told = replace(told, reference=encode_frames(vae, [picture]))
    # the published first clip has no frames beyond the others', so that it shows 77
    spec = ChainSpec(clip_frames=CLIP_FRAMES, first_clip_extra=0)
    chain = Chain(spec, make_chain(spec, 10, NOISE_SEED).clips[:CLIPS])
    render = ChainRender(chain, vae, torch.device("cpu"), lambda stage: nullcontext())
    made = render.denoise(told, {}, sample, lambda: None)
    second = replace(render, chain=Chain(spec, chain.clips[1:]))  # the first one was decoded on the way
    frames = torch.cat(list(second.frames(made))).transpose(0, 1) * 2 - 1
    return {"motion": made["motion.1"], "latents": made["latents.1"], "frames": frames[KEPT]}


@pytest.mark.parametrize(("name", "spread"), [("motion", 0.9), ("latents", 2.0), ("frames", 0.15)])
def test_two_clips_through_the_autoencoder_are_the_published_ones(ours, name, spread):
    golden = load_file(LOOP)[name]
    assert golden.std() > spread
    assert ours[name].shape == golden.shape
    assert (ours[name] - golden).abs().max() <= LIMIT
