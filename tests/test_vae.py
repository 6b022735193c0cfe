"""The streaming autoencoder against the one call of diffusers, for both layouts."""

from __future__ import annotations

import pytest
import torch

from tiny_checkpoint import CONCAT, CONFIGS, OLD_VAE
from wan_pipelines.clip import shown_frames, upright
from wan_pipelines.conditioning import condition_video
from wan_pipelines.errors import RenderError
from wan_pipelines.load import load_checkpoint
from wan_pipelines.pixels import cover_crop
from wan_pipelines.profile import checkpoint_folder, load_profile
from wan_pipelines.vae import WARM_UP, decode_end, encode_frames, stream_decode

pytest_plugins = ("pipeline_fixtures",)
LAYOUTS = pytest.mark.parametrize("spec", [CONCAT, OLD_VAE], ids=["wan2.2", "wan2.1"])


@pytest.fixture
def scaled(monkeypatch):
    """Gives a VAE latent statistics that are not 0 and 1, as real ones have."""

    def scale(vae):
        monkeypatch.setitem(vae._internal_dict, "latents_mean", torch.linspace(-1, 1, 16).tolist())
        monkeypatch.setitem(vae._internal_dict, "latents_std", torch.linspace(0.5, 3, 16).tolist())
        return vae

    return scale


def image(seed: int) -> torch.Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def statistics(vae) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    return mean, std


@LAYOUTS
@torch.no_grad()
def test_streamed_decode_equals_decode(tiny, scaled, spec):
    checkpoint = tiny(spec).checkpoint
    vae = scaled(checkpoint.vae)
    side = 64 // checkpoint.vae_stride
    latents = torch.randn(1, 16, 4, side, side, generator=torch.Generator().manual_seed(0))
    chunks = list(stream_decode(vae, latents))
    mean, std = statistics(vae)
    whole = vae.decode(latents * std + mean).sample[0].transpose(0, 1) / 2 + 0.5
    assert [chunk.shape[0] for chunk in chunks] == [1, 4, 4, 4]
    assert torch.allclose(torch.cat(chunks), whole, atol=1e-5)
    assert whole.std() > 0.01


@LAYOUTS
@pytest.mark.parametrize(("known", "with_last"), [(0, False), (1, False), (1, True), (17, False), (17, True)])
@torch.no_grad()
def test_streamed_encode_equals_encode_to_the_last_bit(tiny, scaled, spec, known, with_last):
    """129 frames: long enough for every part of the encoder to come to rest and be skipped."""
    vae = scaled(tiny(spec).checkpoint.vae)
    prefix, last = torch.stack([image(i) for i in range(17)])[:known], image(99) if with_last else None
    streamed = encode_frames(vae, condition_video(prefix, last, 129))
    mean, std = statistics(vae)
    whole = vae.encode(torch.cat(list(condition_video(prefix, last, 129)), dim=2)).latent_dist.mode()
    assert torch.equal(streamed, (whole - mean) / std)


@torch.no_grad()
def test_parts_at_rest_are_not_computed_again(tiny):
    vae = tiny(CONCAT).checkpoint.vae
    calls = []
    hook = vae.encoder.down_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    encode_frames(vae, condition_video(image(0)[None], None, 129))
    hook.remove()
    assert len(calls) < 10  # of 33 chunks


@torch.no_grad()
def test_skipping_can_be_switched_off_and_changes_nothing(tiny):
    vae = tiny(CONCAT).checkpoint.vae
    calls = []
    hook = vae.encoder.down_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    full = encode_frames(vae, condition_video(image(0)[None], None, 33), skip_settled=False)
    hook.remove()
    assert len(calls) == 9  # every chunk
    assert torch.equal(full, encode_frames(vae, condition_video(image(0)[None], None, 33)))


@torch.no_grad()
def test_two_decodes_at_once_do_not_disturb_each_other(tiny):
    vae = tiny(CONCAT).checkpoint.vae
    a, b = torch.randn(2, 1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mixed = [pair[0] for pair in zip(stream_decode(vae, a), stream_decode(vae, b), strict=True)]
    assert torch.equal(torch.cat(mixed), torch.cat(list(stream_decode(vae, a))))


@LAYOUTS
@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (3, 1), (3, 2), (3, 3)])
@torch.no_grad()
def test_the_end_of_few_latents_is_decoded_behind_all_of_them_to_the_last_bit(tiny, scaled, spec, count, wanted):
    """Two latent frames are what even the last parts of the decoder see before the first wanted one."""
    checkpoint = tiny(spec).checkpoint
    vae, side = scaled(checkpoint.vae), 64 // checkpoint.vae_stride
    latents = torch.randn(1, 16, count, side, side, generator=torch.Generator().manual_seed(0))
    end, whole = (torch.cat(list(chunks)) for chunks in (decode_end(vae, latents, wanted), stream_decode(vae, latents)))
    assert len(end) == (4 * wanted if wanted < count else 4 * wanted - 3)
    assert torch.equal(end, whole[-len(end) :])


@torch.no_grad()
def test_the_end_of_a_video_hardly_shows_that_its_start_was_left_out():
    """A moving picture through the embedded autoencoder; begun at the end itself it would be off by 30 levels."""
    profile = load_profile("tiny", CONFIGS)
    folder = checkpoint_folder(profile, CONFIGS, CONFIGS)
    vae = load_checkpoint(profile, folder, torch.device("cpu"), None).vae
    clip = CONFIGS / "samples" / "rocket-pan.mp4"
    video = torch.stack([cover_crop(upright(frame), 64, 64) for frame in shown_frames(clip, 16, 49)])
    first, *rest = (video * 2 - 1).transpose(0, 1)[None].split([1, *[4] * 12], dim=2)
    latents = encode_frames(vae, [first, *rest])
    calls: list[int] = []
    hook = vae.decoder.up_blocks[-1].register_forward_hook(lambda *_: calls.append(1))
    chunks = list(decode_end(vae, latents, 2))
    hook.remove()
    whole = torch.cat(list(stream_decode(vae, latents)))[-5:]
    assert [len(chunk) for chunk in chunks] == [0] * WARM_UP + [4, 4]
    assert len(calls) == 4  # of nine latent frames
    assert (torch.cat(chunks)[-5:] - whole).abs().max() < 0.2 / 255
    fresh = torch.cat(list(stream_decode(vae, latents[:, :, -2:])))
    assert (fresh[1:] - whole[-4:]).abs().max() > 5 / 255


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@torch.no_grad()
def test_values_that_are_not_finite_are_not_a_picture(tiny, bad):
    latents = torch.zeros(1, 16, 3, 4, 4)
    latents[:, :, 1] = bad
    with pytest.raises(RenderError, match="latent frame 1 of 3 gave pixels that are not finite"):
        list(stream_decode(tiny(CONCAT).checkpoint.vae, latents))
    with pytest.raises(RenderError, match="latent frame 1 of 3 gave pixels that are not finite"):
        list(decode_end(tiny(CONCAT).checkpoint.vae, latents, 2))
