"""Limits and combinations of media inputs."""

from __future__ import annotations

from itertools import combinations

import pytest

from wan_server.media import (
    COMBINATIONS,
    LIMITS,
    MB,
    NO_MEDIA,
    ROLES,
    check,
    check_combination,
    content_type_for,
    extension_for,
    notes,
)
from wan_server.probe import Probe


def image(width=640, height=480, **changes) -> Probe:
    facts = {"kind": "image", "format": "jpeg", "size": 1000, "width": width, "height": height}
    return Probe(**{**facts, **changes})


def clip(**changes) -> Probe:
    facts = {"kind": "video", "format": "mp4", "size": 1000, "width": 640, "height": 480, "seconds": 4.0}
    return Probe(**{**facts, **changes})


def sound(**changes) -> Probe:
    facts = {"kind": "audio", "format": "mp3", "size": 1000, "seconds": 4.0, "has_audio": True}
    return Probe(**{**facts, **changes})


def test_every_role_has_limits():
    assert set(LIMITS) == set(ROLES)


@pytest.mark.parametrize("name", ["jpeg", "png", "bmp", "webp"])
def test_first_frame_takes_the_four_picture_formats(name):
    assert check("first_frame", image(format=name)) == []


@pytest.mark.parametrize(("width", "height"), [(240, 240), (8000, 8000), (240, 1920), (1920, 240)])
def test_limits_of_pictures_include_their_ends(width, height):
    assert check("last_frame", image(width, height, size=20 * MB)) == []


@pytest.mark.parametrize(
    ("probe", "messages"),
    [
        (image(format="gif"), ["must be a JPEG, PNG, BMP or WEBP image (got a GIF)"]),
        (image(100, 300), ["each side must be 240 to 8000 px (got 100x300)"]),
        (image(300, 8001), [
            "each side must be 240 to 8000 px (got 300x8001)",
            "aspect ratio must be 1:8 to 8:1 (got 300x8001)",
        ]),
        (image(240, 1921), ["aspect ratio must be 1:8 to 8:1 (got 240x1921)"]),
        (image(size=20 * MB + 1), ["must be at most 20 MB (got 20.0 MB)"]),
        (image(format="webp", error="animated"), ["must be a still picture (got an animated WEBP)"]),
        (image(kind="unknown", error="truncated"), ["cannot be read: truncated"]),
        (clip(), ["must be a JPEG, PNG, BMP or WEBP image (got an MP4)"]),
        (Probe("unknown", "", 0, error="the file is empty"),
         ["must be a JPEG, PNG, BMP or WEBP image (the file is empty)"]),
    ],
)  # fmt: skip
def test_unusable_pictures_are_named_with_their_limit(probe, messages):
    assert check("first_frame", probe) == messages


def test_a_huge_header_is_reported_by_its_sides_not_by_the_decoder():
    assert check("first_frame", image(30000, 30000, error="more than 64000000 pixels")) == [
        "each side must be 240 to 8000 px (got 30000x30000)"
    ]


@pytest.mark.parametrize("seconds", [1.95, 2.0, 30.0, 30.08])
def test_sound_length_allows_encoder_padding(seconds):
    assert check("driving_audio", sound(seconds=seconds)) == []


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (sound(seconds=1.5), "must be 2 to 30 s long (got 1.5 s)"),
        (sound(seconds=30.2), "must be 2 to 30 s long (got 30.2 s)"),
        (sound(format="m4a"), "must be a WAV or MP3 audio (got an M4A)"),
        (sound(size=16 * MB), "must be at most 15 MB (got 16.0 MB)"),
    ],
)
def test_unusable_sound_is_named_with_its_limit(probe, message):
    assert check("driving_audio", probe) == [message]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (clip(format="webm"), "must be an MP4 or MOV video (got a WEBM)"),
        (clip(seconds=10.5), "must be 2 to 10 s long (got 10.5 s)"),
        (clip(width=4098, height=2160), "each side must be 240 to 4096 px (got 4098x2160)"),
        (clip(size=101 * MB), "must be at most 100 MB (got 101.0 MB)"),
    ],
)
def test_unusable_clips_are_named_with_their_limit(probe, message):
    assert check("first_clip", probe) == [message]


def test_good_clips_pass():
    assert check("first_clip", clip()) == []
    assert check("first_clip", clip(format="mov", seconds=10.04, width=4096, height=4096)) == []


def test_transparency_is_noted_not_refused():
    see_through = image(format="png", has_alpha=True)
    assert check("first_frame", see_through) == []
    assert notes("first_frame", see_through) == ["input.first_frame: transparent pixels were laid on white"]
    assert notes("first_frame", image()) == []
    assert notes("first_clip", clip()) == []


def test_exactly_the_six_combinations_pass():
    subsets = [frozenset(c) for n in range(len(ROLES) + 1) for c in combinations(ROLES, n)]
    accepted = {roles for roles in subsets if check_combination(set(roles)) is None}
    assert accepted == COMBINATIONS
    assert len(accepted) == 6


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (set(), NO_MEDIA),
        ({"last_frame"}, "last_frame needs first_frame or first_clip"),
        ({"last_frame", "driving_audio"}, "last_frame needs first_frame or first_clip"),
        ({"driving_audio"}, "driving_audio needs first_frame"),
        ({"first_clip", "driving_audio"}, "first_clip cannot be combined with driving_audio"),
        ({"first_clip", "driving_audio", "last_frame"}, "first_clip cannot be combined with driving_audio"),
    ],
)
def test_refused_combinations_name_the_field(roles, message):
    assert check_combination(roles) == message


def test_clip_with_first_frame_is_refused_whatever_else_comes():
    for extra in (set(), {"last_frame"}, {"driving_audio"}, {"last_frame", "driving_audio"}):
        message = check_combination({"first_clip", "first_frame", *extra})
        assert message is not None
        assert message.startswith("first_clip cannot be combined with first_frame")


def test_names_and_types_follow_the_real_format():
    assert (extension_for(image()), content_type_for(image())) == ("jpg", "image/jpeg")
    movie = clip(format="mov")
    assert (extension_for(movie), content_type_for(movie)) == ("mov", "video/quicktime")
    assert (extension_for(sound()), content_type_for(sound())) == ("mp3", "audio/mpeg")
    unknown = Probe("unknown", "", 9, error="the format is not recognised")
    assert (extension_for(unknown), content_type_for(unknown)) == ("bin", "application/octet-stream")
