"""Facts about one checkpoint family, read from `configs/models/*.toml`. No torch.

A profile says what the weights are, what they listen to, how they were trained and which sampling settings
their authors publish. It knows nothing of a request: `plan.make_plan` joins the two.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from wan_pipelines.errors import ProfileError

Role = Literal["first_frame", "last_frame", "driving_audio", "first_clip"]
WeightsFrom = Literal["shipped", "random", "repository"]
#: pixel frames per latent frame after the first one, the same in every Wan VAE
TEMPORAL_STRIDE = 4


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Profile:
    """One checkpoint family. Every field is a key of the TOML file; unknown keys and bad values raise."""

    #: file stem, and the name of the folder that holds the weights
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    title: str
    #: what ran, in words, for output_meta
    weights: str
    licence: str
    #: "concat": mask and condition latents as extra input channels; "expand_timesteps": clean latent frames at t=0
    conditioning: Literal["concat", "expand_timesteps"]
    #: media that condition the model; driving audio is muxed by every profile, and listed only where the model hears it
    inputs: Annotated[tuple[Role, ...], Field(strict=False, min_length=1)]
    fps: Annotated[int, Field(ge=1, le=60)]
    #: most frames of one sample, 4n+1
    max_frames: Annotated[int, Field(ge=5)]
    #: sampled width and height are multiples of this: VAE stride times patch
    size_multiple: Annotated[int, Field(ge=2)]
    sampler: Literal["unipc", "euler"]
    steps: Annotated[int, Field(ge=1, le=1000)]
    #: flow-matching time shift
    shift: Annotated[float, Field(gt=0)]
    #: guidance scale at high noise, and the only one when there is no boundary; 1 means no second forward
    guidance_high: Annotated[float, Field(ge=1)]
    guidance_low: Annotated[float, Field(ge=1)]
    #: it also makes a video from the prompt alone
    text_only: bool = False
    #: most frames of a clip's end that the model sees when it goes on from there, 4n+1
    prefix_frames: Annotated[int, Field(ge=1)] = 17
    #: fraction of the noise range below which the low-noise expert takes over; None for a single expert
    boundary: Annotated[float | None, Field(gt=0, lt=1)] = None
    #: pixel budget of the sample; None samples at the output size
    sample_pixels: Annotated[int | None, Field(ge=1024)] = None
    #: tokens of text the cross attention sees
    text_len: Annotated[int, Field(ge=8)] = 512
    #: used when the caller sends none
    negative_prompt: str = ""
    #: GPU memory with everything resident
    gpu_gib: Annotated[float, Field(ge=0)] = 0.0
    disk_gb: Annotated[float, Field(ge=0)] = 0.0
    #: "shipped": in the config folder; "random": a miniature made on first use; "repository": to be downloaded
    weights_from: WeightsFrom = "repository"
    #: Hugging Face repository in diffusers layout
    repository: str | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Profile:
        if self.max_frames % TEMPORAL_STRIDE != 1:
            raise ValueError(f"max_frames: must be 4n+1 (got {self.max_frames})")
        if self.prefix_frames % TEMPORAL_STRIDE != 1 or self.prefix_frames >= self.max_frames:
            raise ValueError(f"prefix_frames: must be 4n+1 and below max_frames (got {self.prefix_frames})")
        if (self.weights_from == "repository") != (self.repository is not None):
            raise ValueError('repository: is needed with weights_from = "repository", and only then')
        if self.sample_pixels is not None and self.sample_pixels < self.size_multiple**2:
            raise ValueError(f"sample_pixels: must be at least size_multiple squared ({self.size_multiple**2})")
        return self

    @property
    def max_seconds(self) -> int:
        """Longest video in whole seconds, sampled in one go from its first frame on."""
        return self.max_frames // self.fps

    @property
    def is_guided(self) -> bool:
        """Whether any expert runs classifier-free guidance, so that a negative prompt has an effect."""
        return self.guidance_high > 1 or (self.boundary is not None and self.guidance_low > 1)


def load_profile(name: str, config_dir: Path) -> Profile:
    """The profile in `config_dir/models/<name>.toml`. Raises ProfileError naming the file and the key."""
    path = config_dir / "models" / f"{name}.toml"
    known = sorted(p.stem for p in path.parent.glob("*.toml"))
    if name not in known:
        raise ProfileError(f"model {name!r} is unknown; {path.parent} has {', '.join(known) or 'no profiles'}")
    return _parse(path)


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
        return Profile(**data, name=path.stem)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{path}: {error}") from error
    except ValidationError as error:
        raise ProfileError(f"{path}: {'; '.join(_lines(error))}") from error


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "value_error":
            lines.append(item["msg"].removeprefix("Value error, "))
        elif item["type"] == "unexpected_keyword_argument":
            lines.append(f"{where}: unknown key")
        elif item["type"] == "missing":
            lines.append(f"{where}: is missing")
        else:
            lines.append(f"{where}: {item['msg']} (got {item['input']!r})")
    return lines
