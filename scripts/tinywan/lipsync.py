"""How well a picture moves to a sound: seen in the frames of the finished MP4, and held against its loudness."""

from __future__ import annotations

import tempfile
import wave
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from tinywan.photos import Photo
from tinywan.recipe import Recipe
from tinywan.s2v_recipe import SisterRecipe
from tinywan.speakers import Speaker, cast
from tinywan.studio import to_image
from tinywan.voices import draw_sound
from wan_pipelines.plan import PlanRequest, RenderPlan, make_plan
from wan_pipelines.profile import checkpoint_folder, load_profile
from wan_pipelines.renderer import Media, Renderer
from wan_pipelines.s2v.clips import ChainSpec
from wan_pipelines.s2v.speech import RATE

FPS = ChainSpec().fps
#: sample sizes that are looked at, width and height
SIZES = ((64, 64), (128, 64))


@dataclass(frozen=True, slots=True)
class Act:
    """Somebody and what he hears."""

    speaker: Speaker
    #: mono sound at 16 kHz
    samples: np.ndarray
    seconds: int
    prompt: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Played:
    """What became of an act."""

    act: Act
    #: [3, T, H, W] in [-1, 1], read from the MP4
    frames: Tensor

    @property
    def opened(self) -> np.ndarray:
        """How far the speaker is seen open in each frame, [T] in [0, 1]."""
        return self.act.speaker.measure(self.frames).numpy()

    @property
    def heard(self) -> np.ndarray:
        """How loud it is around each frame, [T]."""
        return envelope(self.act.samples, self.frames.shape[1])

    @property
    def follows(self) -> float:
        """Pearson's r of the two."""
        return correlation(self.opened, self.heard)

    @property
    def held(self) -> float:
        """PSNR in dB of everything that the sound does not move, over all frames, against the picture."""
        error = ((self.frames - self._still()) / 2)[:, :, ~self.act.speaker.moving()]
        return float(-10 * torch.log10(error.square().mean()))

    def drift(self, seconds: int = 5) -> float:
        """How far the mean colour of what does not move leaves that of the first `seconds`, as a share of the range.

        The channel, and the later stretch of as many seconds, in which it is farthest away.
        """
        still = self.frames[:, :, ~self.act.speaker.moving()].mean(dim=2)  # [3, T]
        first, *later = (stretch.mean(dim=1) for stretch in still.split(seconds * FPS, dim=1))
        return max(float((colour - first).abs().max()) / 2 for colour in later)

    def _still(self) -> Tensor:
        return self.act.speaker.draw(torch.zeros(1))


@dataclass(frozen=True, slots=True)
class Theatre:
    """The loaded sister, at its own size."""

    renderer: Renderer

    @classmethod
    def open(cls, config_dir: Path, name: str = "tiny-s2v") -> Theatre:
        profile = load_profile(name, config_dir)
        return cls(Renderer.load(profile, checkpoint_folder(profile, config_dir, config_dir), "cpu"))

    def play(self, act: Act) -> Played:
        """From the picture and the sound to a finished MP4."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            media = Media(folder / "first.png", driving_audio=write_sound(folder / "sound.wav", act.samples))
            to_image(act.speaker.draw(torch.zeros(1))[:, 0]).save(folder / "first.png")
            plan = self.plan(act)
            self.renderer.encode(plan, media, folder / "conditions", lambda: None)
            self.renderer.denoise(plan, folder / "conditions", folder / "latents", lambda step, steps: None)
            self.renderer.decode(plan, folder / "latents", folder / "v.mp4", media.driving_audio, lambda done, of: None)
            return Played(act, read_frames(folder / "v.mp4"))

    def plan(self, act: Act) -> RenderPlan:
        """The plan of an act, with the size of the speaker's canvas as the size of the output."""
        height, width = act.speaker.canvas.shape[1:]
        media = ("first_frame", "driving_audio")
        request = PlanRequest(act.prompt, "", "720P", width / height, act.seconds, act.seed, media=media)
        plan = make_plan(self.renderer.profile, request)
        return replace(plan, width=width, height=height, sample_width=width, sample_height=height)


@dataclass(frozen=True, slots=True)
class Troupe:
    """Speakers and sounds that training never had."""

    sister: SisterRecipe
    scenes: Recipe
    photos: list[Photo]

    def act(self, number: int, seconds: int = 3) -> Act:
        """One of them; still pictures are left out, because nothing is to be seen there."""
        rng = self.sister.rng("held out", number)
        moving = {kind: share for kind, share in self.sister.cast.kinds.items() if kind != "still"}
        size = SIZES[number % len(SIZES)]
        speaker = cast(replace(self.sister.cast, kinds=moving), self.scenes, self.photos, rng, size)
        samples = draw_sound(self.sister.voice, rng, seconds)
        phrases = self.sister.talking.phrases
        return Act(speaker, samples, seconds, phrases[number % len(phrases)], seed=number)


def envelope(samples: np.ndarray, frames: int, fps: int = FPS) -> np.ndarray:
    """Loudness around each frame, [frames]: root mean square from half a frame before to half a frame behind it."""
    half = RATE // fps // 2
    padded = np.pad(samples.astype(np.float64), (half, frames * 2 * half))
    windows = padded[: frames * 2 * half].reshape(frames, 2 * half)
    return np.sqrt(np.square(windows).mean(axis=1))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r; 0 when one of them does not move at all."""
    if not (one.std() and other.std()):
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def lag(one: np.ndarray, other: np.ndarray, most: int) -> int:
    """By how many frames `other` comes later than `one`: where they fit best, up to `most` either way."""

    def fit(shift: int) -> float:
        early, late = (one, other) if shift >= 0 else (other, one)
        length = len(one) - abs(shift)
        return correlation(early[:length], late[abs(shift) :])

    return max(range(-most, most + 1), key=fit)


def strangers(played: list[Played], quiet_s: float) -> list[float]:
    """For each act r with the sound of the next one. The first `quiet_s` do not count: every sound begins in silence,
    which makes any two of them alike."""
    since = round(quiet_s * FPS)
    others = played[1:] + played[:1]
    return [correlation(one.opened[since:], other.heard[since:]) for one, other in zip(played, others, strict=True)]


def delayed(theatre: Theatre, played: list[Played], seconds: float = 0.5) -> list[int]:
    """By how many frames each act moves later when its sound does."""
    found = []
    for early in played:
        act, silence = early.act, np.zeros(round(seconds * RATE), np.float32)
        later = replace(act, samples=np.concatenate([silence, act.samples])[: len(act.samples)])
        found.append(lag(early.opened, theatre.play(later).opened, most=16))
    return found


def write_sound(path: Path, samples: np.ndarray) -> Path:
    """16 bits, mono; what is louder than full scale is made quieter as a whole."""
    scaled = samples / max(1.0, float(np.abs(samples).max()))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(scaled * 32767).astype("<i2").tobytes())
    return path


def read_frames(path: Path) -> Tensor:
    """All frames of a video, [3, T, H, W] in [-1, 1]."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2) / 127.5 - 1
