"""The input of the app: names, defaults and enums of the hosted schema, and the limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wan_server.body import parse_json
from wan_server.errors import InvalidInput, InvalidRequest
from wan_server.output_schema import output_schema
from wan_server.schema import input_schema, parse_input, parse_run

#: name -> (types, default) of the hosted schema
HOSTED = {
    "prompt": (["string", "null"], None),
    "negative_prompt": (["string", "null"], None),
    "first_frame": (["string", "null"], None),
    "last_frame": (["string", "null"], None),
    "driving_audio": (["string", "null"], None),
    "first_clip": (["string", "null"], None),
    "resolution": (["string"], "1080P"),
    "duration": (["integer"], 5),
    "prompt_extend": (["boolean"], True),
    "watermark": (["boolean"], False),
    "seed": (["integer", "null"], None),
}


def types(field: dict[str, Any]) -> list[str]:
    return [option["type"] for option in field.get("anyOf", [field])]


def test_the_schema_has_the_hosted_fields_and_defaults():
    schema = input_schema()
    assert {name: (types(f), f["default"]) for name, f in schema["properties"].items()} == HOSTED
    assert (schema["title"], schema["type"]) == ("AppInput", "object")
    assert "required" not in schema
    assert schema["properties"]["resolution"]["enum"] == ["720P", "1080P"]


def test_the_schema_tells_files_and_limits():
    fields = input_schema()["properties"]
    assert fields["first_clip"]["anyOf"][0]["format"] == "file"
    assert fields["prompt"]["anyOf"][0]["maxLength"] == 5000
    assert fields["negative_prompt"]["anyOf"][0]["maxLength"] == 500
    assert (fields["duration"]["minimum"], fields["duration"]["maximum"]) == (2, 15)
    assert (fields["seed"]["anyOf"][0]["minimum"], fields["seed"]["anyOf"][0]["maximum"]) == (0, 2147483647)
    assert all(field["description"] for field in fields.values())


def test_the_output_schema_needs_a_video():
    schema = output_schema()
    assert schema["required"] == ["video"]
    assert schema["properties"]["video"]["format"] == "file"
    assert set(schema["$defs"]) >= {"OutputMeta", "VideoMeta", "ImageMeta", "AudioMeta", "TextMeta", "RawMeta"}


def test_absent_and_null_take_the_defaults():
    nothing, _ = parse_input(None)
    nulls, _ = parse_input(dict.fromkeys(HOSTED))
    assert nothing == nulls
    assert nothing.model_dump() == {name: default for name, (_, default) in HOSTED.items()}


@pytest.mark.parametrize("empty", ["", {}, None, {"uri": ""}, {"uri": None, "filename": "x"}])
def test_empty_files_count_as_absent(empty: Any):
    assert parse_input({"first_frame": empty})[0].first_frame is None


def test_a_file_may_be_an_object():
    sent = {"uri": "https://a/b.png", "content_type": "image/png", "size": 3, "path": None}
    assert parse_input({"first_frame": sent})[0].first_frame == "https://a/b.png"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"duration": 1}, "input.duration: must be at least 2 (got 1)"),
        ({"duration": 16}, "input.duration: must be at most 15 (got 16)"),
        ({"duration": 2.5}, "input.duration: must be a whole number (got 2.5)"),
        ({"duration": True}, "input.duration: must be a whole number (got True)"),
        ({"duration": "long"}, "input.duration: must be a whole number (got 'long')"),
        ({"seed": -1}, "input.seed: must be at least 0 (got -1)"),
        ({"seed": 2147483648}, "input.seed: must be at most 2147483647 (got 2147483648)"),
        ({"prompt": "x" * 5001}, "input.prompt: must have at most 5000 characters (got 5001)"),
        ({"negative_prompt": "界" * 501}, "input.negative_prompt: must have at most 500 characters (got 501)"),
        ({"prompt": 5}, "input.prompt: must be a string (got 5)"),
        ({"resolution": "4K"}, "input.resolution: must be '720P' or '1080P' (got '4K')"),
        ({"watermark": "perhaps"}, "input.watermark: must be true or false (got 'perhaps')"),
        ({"prompt_extend": []}, "input.prompt_extend: must be true or false (got [])"),
        ({"first_frame": {"path": "/home/me/a.png"}}, "input.first_frame: path: is a file on the caller's machine"),
        ({"first_frame": 7}, "input.first_frame: must be an http(s) URL"),
        ({"first_frame": ["a"]}, "input.first_frame: must be an http(s) URL"),
        ({"first_frame": {"uri": 7}}, "input.first_frame: must be an http(s) URL"),
    ],
)
def test_refusals_name_the_field_and_the_limit(given: dict[str, Any], message: str):
    with pytest.raises(InvalidInput) as refusal:
        parse_input(given)
    assert str(refusal.value).startswith(message)


def test_the_limits_themselves_are_allowed():
    parse_input({"prompt": "界" * 5000, "negative_prompt": "x" * 500, "duration": 15, "seed": 2147483647})
    parse_input({"duration": "2", "seed": 0, "resolution": "720P"})


@pytest.mark.parametrize("raw", [[], "x", 5, True])
def test_the_input_is_an_object(raw: Any):
    with pytest.raises(InvalidInput, match="input: must be an object"):
        parse_input(raw)


def test_unknown_fields_are_reported():
    _, notes = parse_input({"image": "x", "ratio": None, "prompt": "y"})
    assert notes == ("input.image is not a field of this app and was ignored",)
    _, many = parse_input({f"x{i}": 1 for i in range(25)})
    assert len(many) == 21
    assert many[-1].startswith("5 more fields")


def test_a_run_request_may_hold_nulls_and_unknown_keys():
    names = ("app_id", "version_id", "infra", "workers", "webhook", "setup", "input", "wait", "session", "run_at")
    request = parse_run({"app": "a/b", "variant": "x", **dict.fromkeys(names)})
    assert (request.app, request.input, request.wait) == ("a/b", None, None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "body: must be an object"),
        ({"app": 5}, "app: must be a string"),
        ({"session_timeout": 0}, "session_timeout: must be at least 1"),
        ({"session_timeout": 3601}, "session_timeout: must be at most 3600"),
        ({"infra": "moon"}, "infra: must be "),
        ({"workers": "w"}, "workers: must be a list"),
        ({"metadata": []}, "metadata: must be an object"),
        ({"webhook": "https://" + "x" * 3000}, "webhook: must have at most 2000 characters"),
    ],
)
def test_a_bad_run_request_is_refused(body: Any, message: str):
    with pytest.raises(InvalidInput) as refusal:
        parse_run(body)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b"[" * 40 + b"]" * 40,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"1" * 5000,
        b"{} {}",
    ],
)
def test_what_is_no_json_is_an_invalid_request(data: bytes):
    with pytest.raises(InvalidRequest, match=r"^body: "):
        parse_json(data)


def test_json_is_read_as_it_is():
    value = {"a": [1, 2.5, "é😀", None, True], "b": {"c": "\U0001f600"}}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
