"""The apps that this server answers for, what its models can do with them, and how that is said on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from wan_pipelines.profile import Profile
from wan_pipelines.segments import CHAININGS
from wan_server.appref import AppRef, parse_ref
from wan_server.choice import abilities
from wan_server.clock import timestamp
from wan_server.errors import InvalidInput, NotFound
from wan_server.ids import derived_id, short_id
from wan_server.media import COMBINATIONS
from wan_server.output_schema import output_schema
from wan_server.schema import AppInput, GenerateInput, TextInput, input_schema

Json = dict[str, Any]

FUNCTION: Final = "run"
#: when the protocol of the apps was last changed here (2026-11-22), for the DTOs' time fields
_PUBLISHED: Final = 1_795_305_600.0


def app_id(full_name: str) -> str:
    """The id that goes with an app's name."""
    return derived_id("app", full_name)


def version_id(full_name: str) -> str:
    """The id of the one version of an app."""
    return derived_id("version", full_name)


@dataclass(frozen=True, slots=True)
class App:
    """One app by its hosted name."""

    namespace: str
    name: str
    title: str
    description: str
    tags: tuple[str, ...]
    input: type[AppInput]
    #: media roles that may be given together, each way to use the app
    combinations: frozenset[frozenset[str]]

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def id(self) -> str:
        return app_id(self.full_name)

    @property
    def version_id(self) -> str:
        return version_id(self.full_name)


WAN_I2V: Final = App(
    namespace="alibaba",
    name="wan-2-7-i2v",
    title="Wan 2.7 Image-to-Video",
    description="Animates a first frame, optionally towards a last frame or with a sound, or continues a clip.",
    tags=("image-to-video", "open-weights"),
    input=GenerateInput,
    combinations=COMBINATIONS,
)
WAN_T2V: Final = App(
    namespace="alibaba",
    name="wan-2-7-t2v",
    title="Wan 2.7 Text-to-Video",
    description="Makes a video from a prompt alone.",
    tags=("text-to-video", "open-weights"),
    input=TextInput,
    combinations=frozenset({frozenset()}),
)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Finds apps by name and id. `profiles` is what really answers, the preferred one first."""

    profiles: tuple[Profile, ...]
    apps: tuple[App, ...] = (WAN_I2V, WAN_T2V)
    #: frames per second of every video; None is each model's own
    output_fps: int | None = None

    def find(self, ref: AppRef) -> App:
        """The app a reference names. Raises NotFound naming the known apps, InvalidInput for another function."""
        app = next((app for app in self.apps if app.full_name == ref.full_name), None)
        if app is None:
            known = ", ".join(app.full_name for app in self.apps)
            raise NotFound(f"app: there is no app {ref.full_name!r} here; this server has {known}")
        check_function(ref.function)
        return app

    def by_id(self, identity: str) -> App:
        """The app with this id. Raises NotFound."""
        for app in self.apps:
            if identity in (app.id, short_id(app.id)):
                return app
        raise NotFound(f"app_id: no app has the id {identity}")

    def named(self, name: str | None, identity: str | None) -> tuple[App, AppRef]:
        """The app of a run request, by `app` or `app_id`. Raises InvalidInput, NotFound."""
        if name:
            ref = parse_ref(name)
            return self.find(ref), ref
        if not identity:
            raise InvalidInput("app: is required")
        app = self.by_id(identity)
        return app, AppRef(app.namespace, app.name)

    def dto(self, app: App, function: str = "") -> Json:
        """The AppDTO."""
        return {
            **_base(app.id),
            **ownership("public"),
            "namespace": app.namespace,
            "name": app.name,
            "title": app.title,
            "description": app.description,
            "agent_description": "",
            "category": "video",
            "images": {"card": "", "thumbnail": "", "banner": ""},
            "tags": list(app.tags),
            "version_id": app.version_id,
            "version": self.version_dto(app),
            "status": "active",
            "status_message": "",
            "resolved_function": function,
        }

    def version_dto(self, app: App) -> Json:
        """The AppVersionDTO."""
        schemas: Json = {"input_schema": input_schema(app.input), "output_schema": output_schema()}
        run = {"name": FUNCTION, "description": app.description, **schemas, "kind": "run", "capabilities": []}
        return {
            **_base(app.version_id),
            "metadata": self._metadata(app),
            "repository": self.profiles[0].download_from or "",
            "flow_version_id": None,
            "flow_version": None,
            "setup_schema": None,
            **schemas,
            "functions": {FUNCTION: run},
            "default_function": FUNCTION,
            "env": {},
            "kernel": "",
            "required_secrets": [],
            "required_credentials": [],
            "resources": self._resources(),
            "checksum": "",
        }

    def _metadata(self, app: App) -> Json:
        """The models behind the app, and what this server can and cannot do with each combination of inputs."""
        return {
            "model": ", ".join(profile.served_as for profile in self.profiles),
            "weights": ", ".join(dict.fromkeys(profile.weights for profile in self.profiles)),
            "licence": ", ".join(dict.fromkeys(profile.licence for profile in self.profiles)),
            "models": [model_dto(profile, self.output_fps) for profile in self.profiles],
            "abilities": abilities(self.profiles, app.combinations),
        }

    def _resources(self) -> Json:
        gib = max(profile.gpu_gib for profile in self.profiles)
        gpu = {"count": 1 if gib else 0, "vram": int(gib * 1024**3), "type": "nvidia" if gib else "none"}
        return {"gpu": gpu, "ram": 0}


def model_dto(profile: Profile, output_fps: int | None = None) -> Json:
    """What is known of a model that may answer; `output_fps` where the server has a rate for all."""
    return {
        "model": profile.served_as,
        "preset": profile.preset,
        "title": profile.title,
        "weights": profile.weights,
        "licence": profile.licence,
        "inputs": list(profile.inputs),
        "needs": list(profile.needs),
        "text_alone": profile.text_only,
        "fps": profile.fps,
        "output_fps": output_fps or profile.fps,
        "up_to_s": profile.max_seconds,
        **_length_facts(profile),
        "trained_frames": profile.trained_frames,
        "trained_sizes": list(profile.trained_sizes),
        "steps": profile.steps,
        "uses_negative_prompt": profile.is_guided,
    }


def _length_facts(profile: Profile) -> Json:
    """How long one sample may be, in frames, and how a longer video is put together; None where it never is.

    `overlap_frames` are told of the end of one sample to the next, `prefix_frames` at most of the end of a first_clip.
    """
    chaining = CHAININGS.get(profile.chaining or "")
    return {
        "native_frames": profile.native_frames or profile.clip_frames or profile.max_frames,
        "chaining": "clips" if profile.clip_frames else profile.chaining,
        "overlap_frames": profile.motion_frames if chaining is None else chaining.overlap,
        "prefix_frames": profile.prefix_frames if "first_clip" in profile.inputs else None,
    }


def check_function(function: str | None) -> None:
    """Raises InvalidInput unless it is the one function of every app."""
    if function not in (None, "", FUNCTION):
        raise InvalidInput(f"function: must be {FUNCTION} (got {function!r})")


def ownership(visibility: str) -> Json:
    """Fields that say whose a thing is; there is one user and one team here."""
    return {"user_id": "local", "user": None, "team_id": "local", "team": None, "visibility": visibility}


def _base(identity: str) -> Json:
    at = timestamp(_PUBLISHED)
    return {
        "id": identity,
        "short_id": short_id(identity),
        "created_at": at,
        "updated_at": at,
        "deleted_at": None,
    }
