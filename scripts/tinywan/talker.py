"""Second stage of the sister: a small `WanS2VTransformer3DModel` that moves a picture to what is heard.

As for its sibling, clips are drawn and encoded once, into banks on disk, and every step draws some with new noise.
What a clip is told comes from the code of the pipeline: states of sound by frame, the picture, what came before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from tinywan.banks import encode
from tinywan.denoiser import PlainAttention
from tinywan.photos import Photo
from tinywan.recipe import Recipe
from tinywan.s2v_recipe import SisterRecipe, Takes, Talking
from tinywan.speakers import Speaker, cast
from tinywan.training import Schedule, Trainer
from tinywan.voices import draw_sound, openings
from wan_pipelines.profile import TEMPORAL_STRIDE
from wan_pipelines.s2v.clips import Chain, ChainSpec, Clip
from wan_pipelines.s2v.speech import SpeechEncoder, heard_by_frames
from wan_pipelines.s2v.transformer import WanS2VTransformer3DModel

FPS = ChainSpec().fps
#: frames of a first clip before the video begins
LEAD = ChainSpec().lead_frames
#: pixels per latent, latents per token
STRIDE, PATCH = 8, 2


@dataclass(frozen=True, slots=True)
class Set:
    """What clips are made from: finished and frozen."""

    recipe: SisterRecipe
    #: of wan-tiny, whose canvases are used
    scenes: Recipe
    photos: list[Photo]
    vae: AutoencoderKLWan
    ears: SpeechEncoder
    #: states of the phrases [phrases + 1, text_len, D]; the last is the empty prompt
    text: Tensor


@dataclass(frozen=True, slots=True)
class Clips:
    """Encoded clips of one shape, half precision."""

    #: [N, z, T, h, w]
    latents: Tensor
    #: before them [N, z, M, h, w]; M is 0 where nothing was
    motion: Tensor
    #: [N, z, 1, h, w]
    reference: Tensor
    #: states of sound [N, layers, A, 4T]
    audio: Tensor
    #: which latents the sound moves [N, 1, 1, h, w]
    moving: Tensor

    def drawn(self, batch: int, frames: int, rng: Random) -> Clips:
        """The beginning of some of the clips, so many latent frames of it, in float32."""
        rows = torch.tensor(rng.sample(range(len(self.latents)), min(batch, len(self.latents))))
        audio = self.audio[rows][..., : TEMPORAL_STRIDE * frames]
        chosen = self.latents[rows][:, :, :frames], self.motion[rows], self.reference[rows], audio, self.moving[rows]
        return Clips(*(part.float() for part in chosen))


def build_talker(shape: Talking, z_dim: int, text_width: int, audio: tuple[int, int]) -> WanS2VTransformer3DModel:
    """The transformer with random weights; `audio`: width of the states of sound, and how many there are.

    How the states are weighed stays as it is, all alike: their sum divides, and a step too far would let it vanish.
    """
    model = WanS2VTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        in_channels=z_dim,
        out_channels=z_dim,
        text_dim=text_width,
        freq_dim=128,
        ffn_dim=shape.ffn,
        num_layers=shape.layers,
        pose_channels=z_dim,
        audio_dim=audio[0],
        audio_layers=audio[1],
        audio_tokens=shape.audio_tokens,
        audio_inject_layers=shape.inject,
        motion_frames=shape.motion_frames,
        motion_buckets=shape.motion_buckets,
    )
    model.causal_audio_encoder.weights.requires_grad_(False).fill_(1.0)
    return model


def train_talker(stage: Set, state: Path, deadline: float) -> tuple[WanS2VTransformer3DModel, bool]:
    """The running average of the weights, and whether the stage is done."""
    torch.manual_seed(stage.recipe.seed)
    shape, ears = stage.recipe.talking, stage.ears.model.config
    audio = ears.hidden_size, ears.num_hidden_layers + 1
    model = build_talker(shape, stage.vae.config["z_dim"], stage.text.shape[-1], audio)
    schedule = Schedule(shape.cycles, shape.warmup, shape.learning_rate, shape.final_learning_rate, shape.hold)
    trainer = Trainer(model, schedule, shape.ema, state)
    takes = [film_takes(stage, number, state.parent / "banks") for number in range(len(shape.takes))]

    def loss_of(step: int) -> dict[str, Tensor]:
        rng, lesson = stage.recipe.rng("talker", step), shape.lessons[shape.part(step)]
        number = rng.choices(range(len(takes)), [one.share for one in shape.takes])[0]
        clips, one = takes[number], shape.takes[number]
        frames = min(lesson.latents, clips.latents.shape[2])
        batch = max(1, lesson.tokens // (frames * one.width * one.height // (STRIDE * PATCH) ** 2))
        text = stage.text[[_phrase(shape, rng) for _ in range(batch)]]
        return {"velocity": _loss(model, clips.drawn(batch, frames, rng), text, shape, rng)}

    done = trainer.run(loss_of, deadline)
    average = trainer.average
    assert isinstance(average, WanS2VTransformer3DModel)
    return average, done


def film_takes(stage: Set, number: int, folder: Path) -> Clips:
    """The clips of one shape; banks that are not in the folder yet are made."""
    takes, banks = stage.recipe.talking.takes[number], []
    folder.mkdir(parents=True, exist_ok=True)
    for bank in range(takes.banks):
        path = folder / f"{number}-{bank}.safetensors"
        if not path.is_file():
            print(f"filming {path.name}: {takes.clips} clips, {takes.kind}, {takes.width}x{takes.height}", flush=True)
            made = asdict(make_clips(stage, takes, stage.recipe.rng("bank", path.stem)))
            save_file({name: part.contiguous() for name, part in made.items()}, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        banks.append(load_file(path))
    return Clips(**{name: torch.cat([bank[name] for bank in banks]) for name in banks[0]})


@torch.inference_mode()
def make_clips(stage: Set, takes: Takes, rng: Random) -> Clips:
    """Draw, listen to and encode the clips of a bank."""
    made = [_encoded(stage, takes, rng) for _ in range(0, takes.clips, takes.group)]
    parts = {name: torch.cat([getattr(one, name) for one in made]) for name in Clips.__slots__}
    return Clips(**{name: part.half() for name, part in parts.items()})


def _encoded(stage: Set, takes: Takes, rng: Random) -> Clips:
    """A group of clips through the autoencoder."""
    size = (takes.width, takes.height)
    speakers = [cast(stage.recipe.cast, stage.scenes, stage.photos, rng, size) for _ in range(takes.group)]
    heard, pixels, pictures = zip(*(_take(stage, takes, speaker, rng) for speaker in speakers), strict=True)
    shown = torch.stack(pixels)
    latents = encode(stage.vae, shown, torch.ones(shown.shape[2], dtype=torch.bool))
    first = takes.kind == "first"
    before = 1 if first else sum(stage.recipe.talking.motion_buckets)
    still = torch.stack(pictures)
    reference = latents[:, :, :1] if first else encode(stage.vae, still, torch.ones(1, dtype=torch.bool))
    moving = torch.stack([speaker.moving() for speaker in speakers])[:, None].float()
    return Clips(
        latents=latents[:, :, before:],
        motion=latents[:, :, : 0 if first else before],
        reference=reference,
        audio=torch.stack(heard),
        moving=functional.max_pool2d(moving, STRIDE)[:, :, None],
    )


def _take(stage: Set, takes: Takes, speaker: Speaker, rng: Random) -> tuple[Tensor, Tensor, Tensor]:
    """What is heard [layers, A, 4T], the frames before a clip and its own [3, n, H, W], and the picture [3, 1, H, W].

    Before a first clip there is the picture alone.
    """
    shape, frames = stage.recipe.talking, TEMPORAL_STRIDE * takes.latents
    first = takes.kind == "first"
    begins = -LEAD if first else shape.motion_frames + rng.randint(0, shape.clip_frames)
    end = (begins + frames) / FPS
    length = rng.uniform(min(0.5, end), end) if rng.random() < shape.ends else end + rng.uniform(0, end)
    samples = draw_sound(stage.recipe.voice, rng, length)
    shown = np.arange(begins - (0 if first else shape.motion_frames), begins + frames)
    open_by = openings(samples, np.maximum(shown, 0) / FPS, stage.recipe.voice)
    heard = heard_by_frames(stage.ears.features(samples), _heard_frames(begins, frames))
    if rng.random() < shape.unheard:
        heard, open_by = torch.zeros_like(heard), np.where(shown < begins, open_by, np.float32(0))
    picture = speaker.draw(torch.tensor([rng.random() * (rng.random() < 0.5)]))
    drawn = speaker.draw(torch.from_numpy(open_by))
    return heard, torch.cat([picture, drawn], dim=1) if first else drawn, picture


def _heard_frames(begins: int, frames: int) -> tuple[int, ...]:
    """Which states of sound the frames of a clip hear."""
    return Chain(ChainSpec(), ()).heard(Clip(0, 0, begins, frames, max(0, begins), begins + frames))


def _phrase(shape: Talking, rng: Random) -> int:
    """A row of the phrases' states; the last one is of no words."""
    count = len(shape.phrases)
    return count if rng.random() < shape.no_caption else rng.randrange(count)


def _loss(model: WanS2VTransformer3DModel, clips: Clips, text: Tensor, shape: Talking, rng: Random) -> Tensor:
    """Mean squared error of the predicted noise - data at random noise levels; what the sound moves counts more."""
    data = clips.latents
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    noise = torch.randn(data.shape, generator=generator)
    level = torch.rand(len(data), generator=generator)
    sigma = (shape.shift * level / (1 + (shape.shift - 1) * level)).view(-1, 1, 1, 1, 1)
    spoiled = torch.rand(len(data), generator=generator).view(-1, 1, 1, 1, 1) * shape.motion_noise
    motion = clips.motion + spoiled * torch.randn(clips.motion.shape, generator=generator)
    with torch.autocast(data.device.type, torch.bfloat16), PlainAttention():
        velocity = model(
            sigma * noise + (1 - sigma) * data,
            1000 * sigma.flatten(),
            text[: len(data)],
            audio_features=clips.audio,
            reference_latents=clips.reference,
            motion_latents=motion if motion.shape[2] else None,
            return_dict=False,
        )[0]
    weight = 1 + shape.emphasis * clips.moving
    error = (velocity.float() - (noise - data)).square()
    return (weight * error).mean() / weight.mean()
