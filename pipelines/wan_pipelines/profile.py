"""Facts about one checkpoint family, read from `configs/models/*.toml`. No torch.

A profile says what the weights are, what they listen to, how they were trained and which sampling settings
their authors publish. It knows nothing of a request: `plan.make_plan` joins the two.
"""

from __future__ import annotations

import json
import sys
import tomllib
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from wan_pipelines.bad_values import explain
from wan_pipelines.errors import ProfileError
from wan_pipelines.hd import Refinement
from wan_pipelines.preset import STRICT, LoraFile, Preset, Sampler

Role = Literal["first_frame", "last_frame", "driving_audio", "first_clip"]
#: what tells the model of the video, the strongest first; "text" where nothing else does
Told = Literal["last_frame", "first_clip", "first_frame", "text"]
WeightsFrom = Literal["shipped", "random", "repository"]
Conditioning = Literal["concat", "expand_timesteps", "text", "vace", "s2v"]
#: the published sampling numbers; every profile has them
QUALITY = "quality"
#: pixel frames per latent frame after the first one, the same in every Wan VAE
TEMPORAL_STRIDE = 4


@dataclass(frozen=True, slots=True, config=STRICT)
class Profile:
    """One checkpoint family. Every field is a key of the TOML file; unknown keys and bad values raise.

    The sampling numbers at the top level are the preset "quality"; other presets replace some of them.
    """

    #: file stem, and the name of the folder that holds the weights
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    title: str
    #: what ran, in words, for output_meta
    weights: str
    licence: str
    #: "concat": mask and condition latents as extra input channels; "expand_timesteps": clean latent frames at t=0;
    #: "text": none; "vace": a second stack of blocks over masked video; "s2v": audio, reference and motion tokens
    conditioning: Conditioning
    #: media that condition the model; driving audio is muxed by every profile, and listed only where the model hears it
    inputs: tuple[Role, ...]
    fps: Annotated[int, Field(ge=1, le=60)]
    #: most frames of one sample, or of a video whose clips or segments are chained; 4n+1
    max_frames: Annotated[int, Field(ge=5)]
    #: sampled width and height are multiples of this: VAE stride times patch
    size_multiple: Annotated[int, Field(ge=2)]
    sampler: Sampler
    steps: Annotated[int, Field(ge=1, le=1000)]
    #: flow-matching time shift
    shift: Annotated[float, Field(gt=0)]
    #: guidance scale at high noise, and the only one when there is no boundary; 1 means no second forward
    guidance_high: Annotated[float, Field(ge=1)]
    guidance_low: Annotated[float, Field(ge=1)]
    #: in place of both, by the strongest of the inputs
    guidance_for: dict[Told, Annotated[float, Field(ge=1)]] = field(default_factory=dict)
    #: explicit noise levels before the shift, in place of `steps` evenly spaced ones
    sigmas: tuple[float, ...] | None = None
    #: the preset whose numbers these are
    preset: str = QUALITY
    presets: dict[str, Preset] = field(default_factory=dict)
    #: low-rank additions of the preset
    loras: tuple[LoraFile, ...] = ()
    #: the numbers of the preset are for other weights than those of the repositories, which one brings oneself
    own_weights: bool = False
    #: inputs that it cannot do without, besides a picture or clip to begin with
    needs: tuple[Role, ...] = ()
    #: it also makes a video from the prompt alone
    text_only: bool = False
    #: pictures that a CLIP encoder shows the cross attention: 1 for Wan 2.1 I2V (257 tokens), 2 for FLF2V (514)
    clip_pictures: Annotated[int, Field(ge=0, le=2)] = 0
    #: frames that the model was trained on; `max_frames` may allow more
    trained_frames: Annotated[int | None, Field(ge=5)] = None
    #: sizes that the model was trained on, as "1280x720"
    trained_sizes: tuple[Annotated[str, Field(pattern=r"^\d+x\d+$")], ...] = ()
    #: most frames of a clip's end that the model sees when it goes on from there, 4n+1
    prefix_frames: Annotated[int, Field(ge=1)] = 17
    #: seconds in which the last picture of a clip gives way to the new frames; 0 cuts from the one to the other
    handover_seconds: Annotated[float, Field(ge=0)] = 1.0
    #: how a segment of a longer video goes on from the one before, by name; None samples in one go, and so does
    #: "windows", where each forward sees a part of the sample
    chaining: Literal["prefix", "latents", "svi", "windows"] | None = None
    #: most frames of one such segment or window, 4n+1
    native_frames: Annotated[int | None, Field(ge=5)] = None
    #: frames of one clip, where a video is a chain of clips that each know the end of the one before ("s2v")
    clip_frames: Annotated[int | None, Field(ge=4, multiple_of=TEMPORAL_STRIDE)] = None
    #: pixel frames before a clip that it is told of, 4n+1
    motion_frames: Annotated[int | None, Field(ge=1)] = None
    #: fraction of the noise range below which the low-noise expert takes over; None for a single expert
    boundary: Annotated[float | None, Field(gt=0, lt=1)] = None
    #: pixel budget of the sample; None samples at the output size
    sample_pixels: Annotated[int | None, Field(ge=1024)] = None
    #: how 1080P is made from a sample at 720P; None samples at the larger size only
    refinement: Refinement | None = None
    #: tokens of text the cross attention sees
    text_len: Annotated[int, Field(ge=8)] = 512
    #: used when the caller sends none
    negative_prompt: str = ""
    #: GPU memory for the longest video at 720P with everything resident; 0 for models that need no GPU
    gpu_gib: Annotated[float, Field(ge=0)] = 0.0
    #: the same with as little of the weights on the device as possible
    gpu_gib_least: Annotated[float, Field(ge=0)] = 0.0
    disk_gb: Annotated[float, Field(ge=0)] = 0.0
    #: "shipped": in the config folder; "random": a miniature made on first use; "repository": to be downloaded
    weights_from: WeightsFrom = "repository"
    #: Hugging Face repository in diffusers layout
    repository: str | None = None
    #: Hugging Face repository in the layout of the original code
    original_repository: str | None = None
    #: transformer config in `configs/architectures`, for weights that come without
    architecture: str | None = None
    #: why this version of wanbox cannot run it; empty when it can
    cannot_run: str = ""

    @model_validator(mode="after")
    def _check_together(self) -> Profile:
        if self.max_frames % TEMPORAL_STRIDE != 1:
            raise ValueError(f"max_frames: must be 4n+1 (got {self.max_frames})")
        if self.prefix_frames % TEMPORAL_STRIDE != 1 or self.prefix_frames >= self.max_frames:
            raise ValueError(f"prefix_frames: must be 4n+1 and below max_frames (got {self.prefix_frames})")
        if (self.weights_from == "repository") != (self.download_from is not None):
            raise ValueError('repository: is needed with weights_from = "repository", and only then')
        if not self.inputs and not self.text_only:
            raise ValueError("inputs: may only be empty with text_only = true")
        if not set(self.needs) <= set(self.inputs) or (self.needs and self.text_only):
            raise ValueError("needs: must be among inputs, and empty with text_only = true")
        if self.gpu_gib_least > self.gpu_gib:
            raise ValueError(f"gpu_gib_least: must be at most gpu_gib (got {self.gpu_gib_least:g})")
        if QUALITY in self.presets:
            raise ValueError(f"presets.{QUALITY}: stands at the top level")
        if self.sample_pixels is not None and self.sample_pixels < self.size_multiple**2:
            raise ValueError(f"sample_pixels: must be at least size_multiple squared ({self.size_multiple**2})")
        if self.refinement is not None:
            self.refinement.check(self.boundary, has_one_size=bool(self.sample_pixels or self.clip_frames))
        return self

    @model_validator(mode="after")
    def _check_chains(self) -> Profile:
        given = {self.clip_frames is not None, self.motion_frames is not None}
        if given != {self.conditioning == "s2v"}:
            raise ValueError('clip_frames, motion_frames: are needed with conditioning = "s2v", and only then')
        if (self.motion_frames or 1) % TEMPORAL_STRIDE != 1 or (self.motion_frames or 0) > (self.clip_frames or 0):
            raise ValueError(f"motion_frames: must be 4n+1 and at most clip_frames (got {self.motion_frames})")
        if (self.chaining is None) != (self.native_frames is None):
            raise ValueError("chaining, native_frames: one is needed with the other")
        able = {"svi": ("concat",), "windows": ("text",)}.get(
            self.chaining or "", ("concat", "expand_timesteps", "vace")
        )
        if self.chaining and self.conditioning not in able:
            raise ValueError(f"chaining: {self.chaining} needs conditioning {', '.join(able)}")
        native = self.native_frames or self.max_frames
        if native % TEMPORAL_STRIDE != 1 or not self.prefix_frames < native <= self.max_frames:
            raise ValueError(f"native_frames: must be 4n+1, above prefix_frames, at most max_frames (got {native})")
        return self

    @property
    def max_seconds(self) -> int:
        """Longest video in whole seconds, from its first frame on."""
        return self.max_frames // self.fps

    @property
    def is_guided(self) -> bool:
        """Whether any expert runs classifier-free guidance, so that a negative prompt has an effect."""
        return self.guidance_high > 1 or (self.boundary is not None and self.guidance_low > 1)

    @property
    def served_as(self) -> str:
        """`name[:preset]`: how settings, jobs and plans name these weights with these numbers."""
        return self.name if self.preset == QUALITY else f"{self.name}:{self.preset}"

    @property
    def takes_last_frame_alone(self) -> bool:
        """Whether a last frame needs no picture or clip to begin with: any frame of VACE's video may be given."""
        return self.conditioning == "vace" and "last_frame" in self.inputs

    @property
    def download_from(self) -> str | None:
        """Hugging Face repository of the weights, in diffusers layout where there is one."""
        return self.repository or self.original_repository

    def with_preset(self, name: str) -> Profile:
        """The same weights with the sampling numbers of a preset. Raises ProfileError naming those there are."""
        if name == self.preset:
            return self
        if name not in self.presets or self.preset != QUALITY:
            known = ", ".join((QUALITY, *self.presets))
            raise ProfileError(f"model {self.name} has no preset {name!r}; it has {known}")
        preset = self.presets[name]
        given = {f.name: value for f in fields(preset) if (value := getattr(preset, f.name)) not in (None, ())}
        if preset.guidance_high is not None:
            given["guidance_for"] = {}
        if preset.sigmas is not None:
            given["steps"] = len(preset.sigmas)
        return replace(self, preset=name, **given)


def find_config_dir() -> Path:
    """The `configs` folder of the checkout, or the one installed under the prefix."""
    checkout = Path(__file__).resolve().parents[2] / "configs"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "wanbox" / "configs"


def load_profile(name: str, config_dir: Path) -> Profile:
    """The profile in `config_dir/models/<name>.toml`. Raises ProfileError naming the file and the key."""
    path = config_dir / "models" / f"{name}.toml"
    known = sorted(p.stem for p in path.parent.glob("*.toml"))
    if name not in known:
        raise ProfileError(f"model {name!r} is unknown; {path.parent} has {', '.join(known) or 'no profiles'}")
    return _parse(path)


def load_served(model: str, config_dir: Path) -> Profile:
    """The profile behind `name[:preset]`. Raises ProfileError naming what is unknown or cannot run."""
    name, colon, preset = model.partition(":")
    profile = load_profile(name, config_dir)
    if profile.cannot_run:
        raise ProfileError(f"model {name} cannot run yet: {profile.cannot_run}")
    return profile.with_preset(preset) if colon else profile


def list_profiles(config_dir: Path) -> list[Profile]:
    """Every profile in `config_dir/models`, by name."""
    return [_parse(path) for path in sorted((config_dir / "models").glob("*.toml"), key=lambda path: path.stem)]


def checkpoint_folder(profile: Profile, weights_dir: Path, config_dir: Path) -> Path:
    """Where the profile's weights lie: beside the configs when they are shipped with them."""
    return (config_dir if profile.weights_from == "shipped" else weights_dir) / profile.name


def _parse(path: Path) -> Profile:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        if "name" in data:
            raise ProfileError(f"{path}: name: is the file's own name and is not written in it")
        if mixed := sorted({"preset", "sigmas", "loras", "own_weights"} & set(data)):
            raise ProfileError(f"{path}: {', '.join(mixed)}: belongs into a table [presets.<name>]")
        # as JSON, because tables become dataclasses and arrays tuples there although types are strict
        return TypeAdapter(Profile).validate_json(json.dumps({**data, "name": path.stem}, default=str))
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{path}: {error}") from error
    except ValidationError as error:
        raise ProfileError(f"{path}: {'; '.join(explain(error))}") from error
