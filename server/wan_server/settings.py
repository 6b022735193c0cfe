"""Every setting of the server in one frozen object, read from `WANBOX_*` variables.

An unknown `WANBOX_` variable or a bad value stops the start with a line that names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, HttpUrl, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from wan_pipelines.placement import WISHES
from wan_pipelines.profile import find_config_dir

PREFIX = "WANBOX_"
#: variables of the test suite, not settings
TEST_PREFIX = "WANBOX_TEST_"
MIB = 1024 * 1024


class SettingsError(ValueError):
    """A setting is unknown or has a bad value."""


class Settings(BaseSettings):
    """Typed settings; the field `max_queue` is the variable `WANBOX_MAX_QUEUE`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    #: absolute URL under which clients reach this server; without it links follow the Host header
    public_url: HttpUrl | None = None
    data_dir: Path = Path("data")
    #: SQLAlchemy URL; SQLite inside data_dir when empty
    database_url: str | None = None
    #: fsspec URL of the file store; a folder inside data_dir when empty
    store_url: str | None = None
    config_dir: Path | None = None
    #: profiles that a worker loads, as name[:preset]; a request takes the first that can do it. "auto" looks at the GPU
    models: Annotated[tuple[str, ...], NoDecode] = ("tiny",)
    #: the older name of `models`, for one
    model: str | None = None
    #: folder that holds one sub-folder of weights per profile
    weights_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: how weights are kept; the best way that fits into free memory, or one by its name
    placement: str = "auto"
    #: comma separated API keys that are accepted besides those made with `wanbox keys create`
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ("*",)

    max_upload_bytes: int = Field(100 * MIB, ge=1)
    max_request_bytes: int = Field(160 * MIB, ge=1024)
    max_queue: int = Field(1000, ge=1)
    #: lets inputs and webhooks name private and loopback addresses
    allow_private_urls: bool = False
    fetch_timeout_s: float = Field(120, gt=0)
    upload_url_ttl_s: int = Field(3600, ge=1)

    #: frames per second of videos: the model's own, or interpolated to one of the usual rates
    output_fps: Literal["native", "24", "30"] = "native"
    #: how 1080P is made: as the profile says, at once, or by refining a sample at 720P where the profile can
    hd_route: Literal["profile", "direct", "refine"] = "profile"
    #: the page's prose: 1080P at most 10 s, first+last frame at most 5 s
    hosted_page_caps: bool = False

    stream_poll_s: float = Field(0.5, gt=0)
    #: a real line at least this often, or Python clients give up (they count heartbeats as silence)
    stream_keepalive_s: float = Field(10.0, gt=0)
    queue_poll_s: float = Field(0.25, gt=0)
    heartbeat_s: float = Field(2.0, gt=0)
    #: a worker whose heartbeat is older is taken for dead
    heartbeat_timeout_s: float = Field(20.0, gt=0)
    max_attempts: int = Field(3, ge=1)
    checkpoint_every_s: float = Field(30.0, ge=0)
    webhook_tries: int = Field(5, ge=1)
    webhook_backoff_s: float = Field(2.0, ge=0)

    #: base URL of an OpenAI-compatible service, such as http://127.0.0.1:11434/v1
    prompt_extend_url: HttpUrl | None = None
    prompt_extend_model: str = ""
    prompt_extend_key: str = ""
    prompt_extend_timeout_s: float = Field(30.0, gt=0)
    #: folder of a vision-language model in transformers layout, in place of the service
    prompt_extend_local: Path | None = None

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("api_keys", "cors_origins", "models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """`a, b` as in the environment."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("model", "prompt_extend_url", "prompt_extend_local", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @field_validator("placement")
    @classmethod
    def _check_placement(cls, value: str) -> str:
        if value not in WISHES:
            raise ValueError(f"must be one of {', '.join(WISHES)}")
        return value

    @field_validator("prompt_extend_local")
    @classmethod
    def _local_or_service(cls, folder: Path | None, info: ValidationInfo) -> Path | None:
        if folder and info.data.get("prompt_extend_url"):
            raise ValueError("cannot be given together with prompt_extend_url")
        return folder

    @model_validator(mode="after")
    def _check_models(self) -> Settings:
        if not self.models:
            raise ValueError("models: must name at least one profile")
        if self.model and "models" in self.model_fields_set:
            raise ValueError("models: is given twice, the other time as model")
        return self

    @model_validator(mode="after")
    def _check_heartbeat(self) -> Settings:
        if self.heartbeat_timeout_s < 3 * self.heartbeat_s:
            raise ValueError("heartbeat_timeout_s: must be at least three times heartbeat_s")
        return self

    @property
    def served(self) -> tuple[str, ...]:
        """Names of the models that this server serves, in the order in which they are asked."""
        return (self.model,) if self.model else self.models

    @property
    def frame_rate(self) -> int | None:
        """Frames per second of videos; None is the model's own rate."""
        return None if self.output_fps == "native" else int(self.output_fps)

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the one database."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'wanbox.db'}"

    @property
    def store(self) -> str:
        """fsspec URL of the file store."""
        return self.store_url or f"file://{self.data_dir.resolve() / 'files'}"

    @property
    def weights(self) -> Path:
        """Folder of the weights, one sub-folder per profile."""
        return self.weights_dir or self.data_dir / "weights"

    @property
    def configs(self) -> Path:
        """Folder that holds `models/*.toml`."""
        return self.config_dir or find_config_dir()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_settings(**given: Any) -> Settings:
    """Settings from the environment, with what the command line gave on top (None means not given).

    Raises SettingsError naming every unknown variable and every bad value.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    problems = [f"{name}: is not a setting of wanbox" for name in unknown if not name.startswith(TEST_PREFIX)]
    given = {name: value for name, value in given.items() if value is not None}
    if "models" in given:
        given["model"] = None  # the command line goes before both variables
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems += [_line(item) for item in error.errors(include_url=False)]
        settings = None
    if problems or settings is None:
        raise SettingsError("\n".join(problems))
    return settings


def as_environment(given: Mapping[str, Any]) -> dict[str, str]:
    """What the command line gave, as variables for a child process."""
    values = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in given.items()}
    if values.get("models") is not None:
        values["model"] = ""
    return {PREFIX + name.upper(): str(value) for name, value in values.items() if value is not None}


def _line(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:  # a check of several settings names the first one itself
        name, colon, rest = message.partition(":")
        return f"{PREFIX}{name.upper()}{colon}{rest}"
    return f"{PREFIX}{str(error['loc'][0]).upper()}: {message} (got {error['input']!r})"
