"""The inputs of the apps and the request around them, as the hosted service defines them, with the limits checked.

Field names, types, defaults and enums are the hosted apps'; what their schemas leave to prose (lengths) is enforced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from wan_server.envelope import describe
from wan_server.errors import InvalidInput

MAX_PROMPT: Final = 5000
MAX_NEGATIVE_PROMPT: Final = 500
MAX_SEED: Final = 2**31 - 1
#: unknown fields that are reported one by one
MAX_REPORTED: Final = 20

NOT_A_FILE: Final = 'must be an http(s) URL, a link from POST /files, a data URI, base64 data or an object {"uri": ...}'


def _file_value(value: object) -> object:
    """The URI in any form of a file; None for the forms that mean "not given"."""
    if isinstance(value, Mapping):
        if value.get("path") and not value.get("uri"):
            raise ValueError("path: is a file on the caller's machine; upload it with POST /files and send its uri")
        value = value.get("uri")
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(NOT_A_FILE)
    return value


def _not_a_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"must be a whole number (got {value})")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must say what the video shows (got no text)")
    return value


FileField = Annotated[Annotated[str, Field(json_schema_extra={"format": "file"})] | None, BeforeValidator(_file_value)]
WholeNumber = Annotated[int, BeforeValidator(_not_a_bool)]
#: fields that all apps share
NegativePrompt = Annotated[
    str | None,
    Field(max_length=MAX_NEGATIVE_PROMPT, description="What should not be seen; at most 500 characters."),
]
Resolution = Literal["720P", "1080P"]
PromptExtend = Annotated[bool, Field(description="Let a language model add detail to the prompt.")]
Watermark = Annotated[bool, Field(description='Draw "AI generated" in the bottom right corner.')]
Seed = Annotated[
    Annotated[int, Field(ge=0, le=MAX_SEED), BeforeValidator(_not_a_bool)] | None,
    Field(description="Start of the random numbers; the same seed gives the same video. Drawn when absent."),
]


class GenerateInput(BaseModel):
    """What to animate and how. Give first_frame or first_clip, alone or in one of the listed combinations."""

    model_config = ConfigDict(title="AppInput", extra="ignore", frozen=True)

    prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT,
        description="What should happen in the video, in English or Chinese; at most 5000 characters.",
    )
    negative_prompt: NegativePrompt = None
    first_frame: FileField = Field(
        None,
        description="Image the video starts from: JPEG, PNG, BMP or WEBP, sides 240 to 8000 px, aspect ratio 1:8 "
        "to 8:1, at most 20 MB. Its shape decides the shape of the video.",
    )
    last_frame: FileField = Field(
        None,
        description="Image the video ends on, together with first_frame or first_clip; limits as for first_frame.",
    )
    driving_audio: FileField = Field(
        None,
        description="Sound for the video, together with first_frame: WAV or MP3, 2 to 30 s, at most 15 MB. A model "
        "that listens moves to it.",
    )
    first_clip: FileField = Field(
        None,
        description="Clip to be continued: MP4 or MOV, 2 to 10 s, sides 240 to 4096 px, at most 100 MB.",
    )
    resolution: Resolution = Field(
        "1080P", description="Pixel budget of the video; its shape follows the first frame or clip."
    )
    duration: WholeNumber = Field(
        5, ge=2, le=15, description="Length of the video in seconds; a continued clip counts as part of it."
    )
    prompt_extend: PromptExtend = True
    watermark: Watermark = False
    seed: Seed = None


class TextInput(BaseModel):
    """What the video shows, in words alone."""

    model_config = ConfigDict(title="AppInput", extra="ignore", frozen=True)

    prompt: Annotated[str, AfterValidator(_not_blank)] = Field(
        max_length=MAX_PROMPT,
        json_schema_extra={"minLength": 1},
        description="What the video shows and what happens in it, in English or Chinese; at most 5000 characters.",
    )
    negative_prompt: NegativePrompt = None
    resolution: Resolution = Field("1080P", description="Size of the video: 1280x720 or 1920x1080.")
    duration: WholeNumber = Field(5, ge=2, le=15, description="Length of the video in seconds.")
    prompt_extend: PromptExtend = True
    watermark: Watermark = False
    seed: Seed = None


AppInput = GenerateInput | TextInput
Input = TypeVar("Input", bound=AppInput)


class RunRequest(BaseModel):
    """Body of `POST /apps/run`. Fields that are null count as absent, unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    app: str | None = Field(None, description="`namespace/name`, optionally with `@version` and `:function`.")
    app_id: str | None = None
    version_id: str | None = None
    input: Any = Field(None, description="The app's input; its schema is part of GET /apps/{namespace}/{name}.")
    wait: bool | None = Field(None, description="Answer when the task has ended.")
    stream: bool | None = None
    function: str | None = Field(None, description="Only `run` exists.")
    webhook: str | None = Field(None, max_length=2000, description="http(s) URL that gets the result.")
    session: str | None = Field(None, max_length=100, description="`new`, or the id of a session.")
    session_timeout: Annotated[int, Field(ge=1, le=3600), BeforeValidator(_not_a_bool)] | None = Field(
        None, description="Idle seconds of a new session."
    )
    run_at: str | None = Field(None, max_length=64, description="ISO 8601 time before which the task does not start.")
    setup: Any = None
    metadata: dict[str, Any] | None = None
    infra: Literal["cloud", "private", "private_first", "remote"] | None = None
    workers: list[str] | None = None


def parse_run(body: object) -> RunRequest:
    """Read the request. Raises InvalidInput."""
    if not isinstance(body, dict):
        raise InvalidInput("body: must be an object")
    try:
        return RunRequest.model_validate(body)
    except ValidationError as error:
        raise InvalidInput(describe(error.errors(include_url=False))) from None


def parse_input(raw: object, model: type[Input] = GenerateInput) -> tuple[Input, tuple[str, ...]]:
    """Read an app's input; also sentences on fields it does not know. Raises InvalidInput naming field and limit."""
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise InvalidInput("input: must be an object")
    given = {name: value for name, value in raw.items() if value is not None}
    try:
        parsed = model.model_validate(given)
    except ValidationError as error:
        raise InvalidInput(describe(error.errors(include_url=False), "input")) from None
    return parsed, tuple(_unknown([name for name in given if name not in model.model_fields]))


def input_schema(model: type[AppInput] = GenerateInput) -> dict[str, Any]:
    """JSON schema of an app's input, as GET /apps serves it."""
    return model.model_json_schema()


def _unknown(names: list[str]) -> list[str]:
    notes = [f"input.{name[:60]} is not a field of this app and was ignored" for name in names[:MAX_REPORTED]]
    if len(names) > MAX_REPORTED:
        notes.append(f"{len(names) - MAX_REPORTED} more fields of input are unknown and were ignored")
    return notes
