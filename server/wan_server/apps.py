"""The apps that this server answers for, and how they are described on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from wan_pipelines.profile import Profile
from wan_server.appref import AppRef, parse_ref
from wan_server.clock import timestamp
from wan_server.errors import InvalidInput, NotFound
from wan_server.ids import derived_id, short_id
from wan_server.output_schema import output_schema
from wan_server.schema import input_schema

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
)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Finds apps by name and id. `profile` is what really answers."""

    profile: Profile
    apps: tuple[App, ...] = (WAN_I2V,)

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
        schemas: Json = {"input_schema": input_schema(), "output_schema": output_schema()}
        run = {"name": FUNCTION, "description": app.description, **schemas, "kind": "run", "capabilities": []}
        return {
            **_base(app.version_id),
            "metadata": {"model": self.profile.name, "weights": self.profile.weights, "licence": self.profile.licence},
            "repository": self.profile.repository or "",
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

    def _resources(self) -> Json:
        gib = self.profile.gpu_gib
        gpu = {"count": 1 if gib else 0, "vram": int(gib * 1024**3), "type": "nvidia" if gib else "none"}
        return {"gpu": gpu, "ram": 0}


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
