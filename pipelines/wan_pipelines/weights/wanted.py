"""Which files of a repository a profile needs, and where they go in its folder. No torch, no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wan_pipelines.errors import CheckpointError
from wan_pipelines.preset import LORA_FOLDER
from wan_pipelines.profile import Profile

Layout = Literal["diffusers", "original"]
LAYOUTS: tuple[Layout, ...] = ("diffusers", "original")

#: patterns of which one must be found; the first that finds a file is taken
Want = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A repository and the files wanted of it, as shell patterns over their paths (`*` crosses folders)."""

    repository: str
    wants: tuple[Want, ...]
    #: taken when they are there
    extras: Want = ()
    #: folder of the target that takes the files without their own folders; None keeps their paths
    into: str | None = None
    #: branch, tag or commit
    revision: str = "main"


def hint(profile: Profile) -> str:
    """How the weights come to a profile, to be put behind an error that misses them; empty when they are built in."""
    if profile.weights_from != "repository":
        return ""
    if profile.own_weights:
        return "; they are brought by oneself, as docs/weights.md says"
    return f"; `wanbox weights get {profile.served_as}` fetches it; docs/weights.md for your own"


def base_source(profile: Profile, layout: Layout | None) -> Source:
    """The profile's own weights; without a layout, the diffusers one where there is one. Raises CheckpointError."""
    if profile.weights_from != "repository":
        raise CheckpointError(f"{profile.name}: its weights are built in, there is nothing to download")
    if profile.own_weights:
        raise CheckpointError(
            f"{profile.served_as}: {profile.download_from} does not have these weights, they are brought by oneself; "
            f"docs/weights.md says how, `wanbox weights check {profile.served_as}` what is missing"
        )
    repositories = {"diffusers": profile.repository, "original": profile.original_repository}
    chosen = layout or next(name for name in LAYOUTS if repositories[name])
    repository = repositories[chosen]
    if repository is None:
        known = ", ".join(name for name in LAYOUTS if repositories[name])
        raise CheckpointError(f"{profile.name}: no repository in the {chosen} layout is known, only {known}")
    wants, extras = _diffusers(profile) if chosen == "diffusers" else _original(profile)
    return Source(repository, wants, (*extras, "README.md", "LICENSE*"))


def lora_sources(profile: Profile) -> list[Source]:
    """The low-rank additions of the profile's preset."""
    return [Source(lora.repository, ((lora.file,),), into=LORA_FOLDER) for lora in profile.loras]


def _diffusers(profile: Profile) -> tuple[tuple[Want, ...], Want]:
    models = ["transformer", "vae", "text_encoder"]
    models += ["transformer_2"] if profile.boundary is not None else []
    models += ["image_encoder"] if profile.clip_pictures else []
    models += ["audio_encoder"] if profile.conditioning == "s2v" else []
    wants: list[Want] = [("model_index.json",), ("tokenizer/*",)]
    wants += [("image_processor/*",)] if profile.clip_pictures else []
    for model in models:
        wants += [(f"{model}/config.json",), (f"{model}/*.safetensors",)]
    return tuple(wants), (*(f"{model}/*.json" for model in models), "scheduler/*.json")


def _original(profile: Profile) -> tuple[tuple[Want, ...], Want]:
    folders = ("high_noise_model/", "low_noise_model/") if profile.boundary is not None else ("",)
    wants: list[Want] = [("models_t5_*.pth",), ("Wan2.?_VAE.pth",), ("google/umt5-xxl/*",)]
    wants += [(f"{folder}diffusion_pytorch_model*.safetensors",) for folder in folders]
    wants += [("models_clip_*.pth",)] if profile.clip_pictures else []
    if profile.conditioning == "s2v":
        wants += [("wav2vec2*/config.json",), ("wav2vec2*/model.safetensors", "wav2vec2*/pytorch_model.bin")]
    extras = [f"{folder}{name}" for folder in folders for name in ("config.json", "diffusion_pytorch_model*.json")]
    return tuple(wants), (*extras, "wav2vec2*/*.json")
