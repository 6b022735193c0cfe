"""The limits of every media input as data, and the checks that name them.

Limits are the hosted app's (DashScope wan2.7 i2v). They are read generously: one MB is 1024 x 1024 bytes,
and a length may exceed its limit by `SLACK_S`, because encoders pad the last frame of sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from wan_server.probe import Probe

MB = 1024 * 1024
SLACK_S = 0.1
MAX_ASPECT = 8

ROLES = ("first_frame", "last_frame", "driving_audio", "first_clip")
#: those that condition the picture
VISUAL = ("first_frame", "last_frame", "first_clip")
NO_MEDIA = "At least one media input is required (first_frame, last_frame, driving_audio, or first_clip)."
#: the closed list of inputs that may come together
COMBINATIONS = frozenset(
    {
        frozenset({"first_frame"}),
        frozenset({"first_frame", "driving_audio"}),
        frozenset({"first_frame", "last_frame"}),
        frozenset({"first_frame", "last_frame", "driving_audio"}),
        frozenset({"first_clip"}),
        frozenset({"first_clip", "last_frame"}),
    }
)

#: our name of a format -> file name extension and content type
FILE_TYPES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "jpeg": ("jpg", "image/jpeg"),
        "png": ("png", "image/png"),
        "bmp": ("bmp", "image/bmp"),
        "webp": ("webp", "image/webp"),
        "gif": ("gif", "image/gif"),
        "wav": ("wav", "audio/wav"),
        "mp3": ("mp3", "audio/mpeg"),
        "m4a": ("m4a", "audio/mp4"),
        "flac": ("flac", "audio/flac"),
        "ogg": ("ogg", "audio/ogg"),
        "mp4": ("mp4", "video/mp4"),
        "mov": ("mov", "video/quicktime"),
        "webm": ("webm", "video/webm"),
        "mkv": ("mkv", "video/x-matroska"),
        "avi": ("avi", "video/x-msvideo"),
    }
)
SPOKEN_WITH_AN = frozenset({"mp3", "mp4", "m4a", "avi", "avif", "mkv", "ogg", "aac", "flv", "mpeg", "html"})


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What one media input must be. Sides in px, sizes in bytes; ranges include their ends."""

    kind: str
    formats: tuple[str, ...]
    max_size: int
    sides: tuple[int, int] | None = None
    seconds: tuple[float, float] | None = None

    @property
    def wanted(self) -> str:
        """For a message: `a JPEG, PNG, BMP or WEBP image`."""
        *most, last = (name.upper() for name in self.formats)
        names = ", ".join((_named(self.formats[0]), *most[1:]))
        return f"{names} or {last} {self.kind}"


IMAGE = MediaLimits("image", ("jpeg", "png", "bmp", "webp"), 20 * MB, sides=(240, 8000))
LIMITS: Mapping[str, MediaLimits] = MappingProxyType(
    {
        "first_frame": IMAGE,
        "last_frame": IMAGE,
        "driving_audio": MediaLimits("audio", ("wav", "mp3"), 15 * MB, seconds=(2, 30)),
        "first_clip": MediaLimits("video", ("mp4", "mov"), 100 * MB, sides=(240, 4096), seconds=(2, 10)),
    }
)


def check(role: str, probe: Probe) -> list[str]:
    """Everything that is wrong with a file in this role; empty when it may be used.

    Messages follow the field's name: `input.first_frame: must be at most 20 MB (got 31.2 MB)`.
    """
    limits = LIMITS[role]
    if probe.format not in limits.formats:
        got = f"got {_named(probe.format)}" if probe.format else probe.error
        return [f"must be {limits.wanted} ({got})"]
    if probe.error == "animated":
        return [f"must be a still picture (got an animated {probe.format.upper()})"]
    messages = [*_check_size(limits, probe), *_check_sides(limits, probe), *_check_seconds(limits, probe)]
    return messages or ([f"cannot be read: {probe.error}"] if probe.error else [])


def notes(role: str, probe: Probe) -> list[str]:
    """What is done to a usable file that its sender may want to know; for output_meta."""
    if LIMITS[role].kind == "image" and probe.has_alpha:
        return [f"input.{role}: transparent pixels were laid on white"]
    return []


def check_combination(roles: set[str]) -> str | None:
    """Why these inputs cannot be used together, or None. `roles`: names of the inputs that are given."""
    if not roles:
        return NO_MEDIA
    if roles in COMBINATIONS:
        return None
    if "first_clip" in roles and "first_frame" in roles:
        return "first_clip cannot be combined with first_frame: the clip's last frame is the start"
    if "first_clip" in roles and "driving_audio" in roles:
        return "first_clip cannot be combined with driving_audio"
    if "last_frame" in roles:
        return "last_frame needs first_frame or first_clip"
    return "driving_audio needs first_frame"


def extension_for(probe: Probe) -> str:
    """File name extension without a dot; `bin` for a format that has no name here."""
    return FILE_TYPES.get(probe.format, ("bin", ""))[0]


def content_type_for(probe: Probe) -> str:
    """MIME type of the real content; `application/octet-stream` for a format that has no name here."""
    return FILE_TYPES.get(probe.format, ("", "application/octet-stream"))[1]


def _named(format_name: str) -> str:
    return f"{'an' if format_name in SPOKEN_WITH_AN else 'a'} {format_name.upper()}"


def _check_size(limits: MediaLimits, probe: Probe) -> list[str]:
    if probe.size <= limits.max_size:
        return []
    return [f"must be at most {limits.max_size // MB} MB (got {probe.size / MB:.1f} MB)"]


def _check_sides(limits: MediaLimits, probe: Probe) -> list[str]:
    if limits.sides is None or not probe.width or not probe.height:
        return []
    low, high = limits.sides
    short, long = sorted((probe.width, probe.height))
    got = f"(got {probe.width}x{probe.height})"
    messages = [] if low <= short and long <= high else [f"each side must be {low} to {high} px {got}"]
    if long > MAX_ASPECT * short:
        messages.append(f"aspect ratio must be 1:{MAX_ASPECT} to {MAX_ASPECT}:1 {got}")
    return messages


def _check_seconds(limits: MediaLimits, probe: Probe) -> list[str]:
    if limits.seconds is None or probe.seconds is None:
        return []
    low, high = limits.seconds
    if low - SLACK_S <= probe.seconds <= high + SLACK_S:
        return []
    return [f"must be {low:g} to {high:g} s long (got {probe.seconds:g} s)"]
