"""The output of the app as a JSON schema: a link to the video and what is known of inputs and outputs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Meta(BaseModel):
    """One item of `output_meta`."""

    extra: dict[str, Any] | None = Field(None, description="Facts beyond the common ones.")


class TextMeta(Meta):
    """A text that was read or written."""

    type: str = "text"
    tokens: int = Field(0, description="Length in tokens.")


class ImageMeta(Meta):
    """An image."""

    type: str = "image"
    width: int = Field(0, description="Pixels.")
    height: int = Field(0, description="Pixels.")
    resolution_mp: float = Field(0, description="Millions of pixels.")
    steps: int = Field(0, description="Denoising steps.")
    count: int = Field(1, description="How many of them.")


class VideoMeta(Meta):
    """A video."""

    type: str = "video"
    width: int = Field(0, description="Pixels.")
    height: int = Field(0, description="Pixels.")
    resolution_mp: float = Field(0, description="Millions of pixels of one frame.")
    resolution: str | None = Field(None, description="Tier by name: 720p or 1080p.")
    seconds: float = Field(0, description="Length.")
    fps: int = Field(0, description="Frames per second.")


class AudioMeta(Meta):
    """A sound."""

    type: str = "audio"
    seconds: float = Field(0, description="Length.")
    sample_rate: int = Field(0, description="Samples per second.")


class RawMeta(Meta):
    """Something with a price of its own."""

    type: str = "raw"
    cost: float = Field(0, description="Cents.")


AnyMeta = TextMeta | ImageMeta | VideoMeta | AudioMeta | RawMeta


class OutputMeta(BaseModel):
    """What went in and what came out, with the numbers as they really were."""

    inputs: list[AnyMeta] = Field(default_factory=list, description="Media that was used.")
    outputs: list[AnyMeta] = Field(default_factory=list, description="Media that was made.")


class AppOutput(BaseModel):
    """The output of a completed task."""

    model_config = ConfigDict(title="AppOutput")

    video: str = Field(description="Link to the MP4.", json_schema_extra={"format": "file"})
    output_meta: OutputMeta | None = Field(None, description="Facts about inputs and outputs.")


def output_schema() -> dict[str, Any]:
    """JSON schema of the output, as GET /apps serves it."""
    return AppOutput.model_json_schema()
