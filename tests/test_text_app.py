"""The app for text alone: its schema, what it refuses and why, and its way through HTTP, queue and worker to an MP4."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from inferencesh import Inference

from chat_service import chat_service, completion
from front_end import REMOTE, FrontEnd, front_end
from mp4_facts import examine
from sdk_input import CANCELLED, COMPLETED, TERMINAL
from server_process import running_server
from wan_server.apps import WAN_T2V
from wan_server.errors import InvalidInput
from wan_server.schema import TextInput, input_schema, parse_input

APP = "alibaba/wan-2-7-t2v"
#: name -> (type, default) of the hosted schema; None where it has none
HOSTED = {
    "prompt": ("string", None),
    "negative_prompt": ("string", None),
    "resolution": ("string", "1080P"),
    "duration": ("integer", 5),
    "prompt_extend": ("boolean", True),
    "watermark": ("boolean", False),
    "seed": ("integer", None),
}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with front_end(tmp_path_factory.mktemp("text")) as front:
        yield front


def run(front: FrontEnd, **given: Any) -> Any:
    return front.client.post("/apps/run", json={"app": APP, "input": given})


def refusal(answer: Any) -> str:
    assert answer.status_code == 422, answer.text
    return answer.json()["detail"]


# ---- the schema ----------------------------------------------------------------------------------------------------


def test_the_schema_has_the_hosted_fields_and_defaults():
    schema = input_schema(TextInput)
    fields = schema["properties"]
    kinds = {name: (field.get("anyOf", [field])[0]["type"], field.get("default")) for name, field in fields.items()}
    assert kinds == HOSTED
    assert (schema["title"], schema["type"], schema["required"]) == ("AppInput", "object", ["prompt"])
    assert (fields["prompt"]["minLength"], fields["prompt"]["maxLength"]) == (1, 5000)
    assert fields["resolution"]["enum"] == ["720P", "1080P"]
    assert (fields["duration"]["minimum"], fields["duration"]["maximum"]) == (2, 15)
    assert all(field["description"] for field in fields.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "input.prompt: is required"),
        ({"prompt": None}, "input.prompt: is required"),
        ({"prompt": ""}, "input.prompt: must say what the video shows (got no text)"),
        ({"prompt": " \n"}, "input.prompt: must say what the video shows (got no text)"),
        ({"prompt": "x" * 5001}, "input.prompt: must have at most 5000 characters (got 5001)"),
        ({"prompt": "x", "negative_prompt": "x" * 501}, "input.negative_prompt: must have at most 500 characters"),
        ({"prompt": "x", "duration": 16}, "input.duration: must be at most 15 (got 16)"),
        ({"prompt": "x", "duration": 1}, "input.duration: must be at least 2 (got 1)"),
        ({"prompt": "x", "resolution": "480P"}, "input.resolution: must be '720P' or '1080P' (got '480P')"),
        ({"prompt": "x", "seed": -1}, "input.seed: must be at least 0 (got -1)"),
    ],
)
def test_refusals_name_the_field_and_the_limit(given: dict[str, Any], message: str):
    with pytest.raises(InvalidInput) as refused:
        parse_input(given, TextInput)
    assert str(refused.value).startswith(message)


# ---- the front end -------------------------------------------------------------------------------------------------


def test_the_app_is_described_beside_the_other(front: FrontEnd):
    app = front.client.get(f"/apps/{APP}").json()["data"]
    assert (app["namespace"], app["name"], app["id"]) == ("alibaba", "wan-2-7-t2v", WAN_T2V.id)
    assert app["version"]["input_schema"] == input_schema(TextInput)
    assert app["version"]["metadata"]["abilities"] == [{"inputs": [], "models": {"tiny": 15}}]
    other = front.client.get("/apps/alibaba/wan-2-7-i2v").json()["data"]
    assert other["id"] != app["id"]
    assert "first_frame" in other["version"]["input_schema"]["properties"]


def test_a_run_becomes_a_job_with_the_defaults(front: FrontEnd):
    job = front.queue.get(run(front, prompt="a sea").json()["data"]["id"]).job
    assert (job.app, job.model, job.files, job.remote) == (APP, "tiny", {}, {})
    wanted = {"prompt": "a sea", "resolution": "1080P", "duration": 5, "prompt_extend": True, "watermark": False}
    assert job.input == wanted


def test_media_and_a_ratio_are_no_fields_of_it_and_are_reported(front: FrontEnd):
    answer = run(front, prompt="a sea", first_frame=REMOTE, ratio="9:16")
    job = front.queue.get(answer.json()["data"]["id"]).job
    assert (job.remote, "first_frame" in job.input) == ({}, False)
    assert job.not_honoured == (
        "input.first_frame is not a field of this app and was ignored",
        "input.ratio is not a field of this app and was ignored",
    )


def test_an_uploaded_text_is_refused_with_the_cause(front: FrontEnd):
    link = front.upload(b"morphing", filename="a.txt")["uri"]
    assert "is the link of an uploaded file" in refusal(run(front, prompt=link))


def test_the_caps_of_the_page_are_about_images(tmp_path: Path):
    with front_end(tmp_path, hosted_page_caps=True) as front:
        assert run(front, prompt="a sea", duration=15).status_code == 200


def test_models_that_need_a_picture_refuse_with_the_reason(tmp_path: Path):
    with front_end(tmp_path, models="wan2.2-i2v-a14b,wan2.1-i2v-14b-720p") as front:
        why = (
            "app: no model of this server can do this. wan2.2-i2v-a14b: model wan2.2-i2v-a14b makes no video from text "
            "alone; it needs first_frame or first_clip; wan2.1-i2v-14b-720p: model wan2.1-i2v-14b-720p makes no video "
            "from text alone; it needs first_frame"
        )
        assert refusal(run(front, prompt="a sea")) == why
        version = front.client.get(f"/apps/{APP}").json()["data"]["version"]
        assert version["metadata"]["abilities"] == [{"inputs": [], "models": {}, "why_not": why}]


def test_a_model_for_text_goes_first(tmp_path: Path):
    with front_end(tmp_path, models="wan2.2-ti2v-5b,wan2.2-t2v-a14b") as front:
        job = front.queue.get(run(front, prompt="a sea", duration=5).json()["data"]["id"]).job
        assert job.model == "wan2.2-t2v-a14b"
        assert job.options["passed_over"] == {"wan2.2-ti2v-5b": "model wan2.2-ti2v-5b is not for text alone"}


# ---- the whole way -------------------------------------------------------------------------------------------------


def extra_of(task: dict[str, Any]) -> dict[str, Any]:
    (video,) = task["output"]["output_meta"]["outputs"]
    assert task["output"]["output_meta"]["inputs"] == []
    return video["extra"]


@pytest.mark.slow
def test_from_text_through_a_language_model_to_a_video_with_the_official_client(tmp_path: Path):
    long = "a calm sea at dusk, low waves roll in, the camera glides left"
    with chat_service(completion(long)) as service:
        settings = {"WANBOX_PROMPT_EXTEND_URL": service.url, "WANBOX_PROMPT_EXTEND_MODEL": "some-vl"}
        with running_server(tmp_path / "data", settings=settings) as server:
            client = Inference(api_key="any", base_url=server.base_url)
            wish = {"app": APP, "input": {"prompt": "a sea", "resolution": "720P", "duration": 2, "seed": 7}}
            for cached in (False, True):
                task = client.run(wish)
                assert isinstance(task, dict)
                assert task["status"] == COMPLETED
                extra = extra_of(task)
                assert (extra["task_type"], extra["prompt"], extra["seed"]) == ("text", long, 7)
                told = {"requested": True, "applied": True, "model": "some-vl", "cached": cached, "note": None}
                assert told.items() <= extra["prompt_extend"].items()
            assert len(service.asked) == 1
            path = tmp_path / "video.mp4"
            path.write_bytes(httpx.get(task["output"]["video"]).raise_for_status().content)
            facts = examine(path)
            assert (facts.width, facts.height, facts.frames) == (1280, 720, 32)

            service.arrived.clear()
            service.release.clear()  # from now on it never answers
            wish["input"]["prompt"] = "another sea"
            waiting = client.run(wish, wait=False)
            assert isinstance(waiting, dict)
            assert service.arrived.wait(30)
            began = time.monotonic()
            client.tasks.cancel(waiting["id"])
            assert service.hung_up.wait(10)
            while (state := client.tasks.get(waiting["id"]).data)["status"] not in TERMINAL:
                assert time.monotonic() - began < 15
                time.sleep(0.05)
            assert state["status"] == CANCELLED
