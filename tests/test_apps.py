"""Descriptions of the app, and waiting for a run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from front_end import APP, REMOTE, FrontEnd, front_end
from wan_pipelines.profile import find_config_dir, load_served
from wan_server.apps import WAN_I2V, model_dto
from wan_server.schema import input_schema


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with front_end(tmp_path_factory.mktemp("apps")) as front:
        yield front


BODY = {"app": APP, "input": {"first_frame": REMOTE, "duration": 2}}


def test_the_app_is_described_with_its_schemas(front: FrontEnd):
    app = front.client.get(f"/apps/{APP}").json()["data"]
    assert (app["namespace"], app["name"], app["category"], app["status"]) == (
        "alibaba",
        "wan-2-7-i2v",
        "video",
        "active",
    )
    version = app["version"]
    assert version["id"] == app["version_id"]
    assert version["input_schema"] == version["functions"]["run"]["input_schema"] == input_schema()
    assert version["output_schema"]["required"] == ["video"]
    assert (version["default_function"], version["functions"]["run"]["kind"]) == ("run", "run")
    assert version["metadata"]["model"] == "tiny"
    assert version["required_secrets"] == []


def test_the_app_says_what_its_models_can_and_cannot_do(tmp_path: Path):
    with front_end(tmp_path, models="wan2.2-ti2v-5b,wan2.2-i2v-a14b:fast") as front:
        version = front.client.get(f"/apps/{APP}").json()["data"]["version"]
    said = version["metadata"]
    assert said["model"] == "wan2.2-ti2v-5b, wan2.2-i2v-a14b:fast"
    assert [model["preset"] for model in said["models"]] == ["quality", "fast"]
    assert [model["uses_negative_prompt"] for model in said["models"]] == [True, False]
    able = {"+".join(ability["inputs"]): ability for ability in said["abilities"]}
    assert able["first_frame"]["models"] == {"wan2.2-ti2v-5b": 15, "wan2.2-i2v-a14b:fast": 15}
    assert able["last_frame+first_clip"]["models"] == {"wan2.2-i2v-a14b:fast": 15}
    assert "no model that can do this listens" in able["first_frame+driving_audio"]["note"]
    assert version["resources"]["gpu"]["vram"] == 86 * 1024**3


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("wan2.2-i2v-a14b", (81, "prefix", 9, 17, 15, 16)),
        ("wan2.2-i2v-a14b:svi", (81, "svi", 5, 5, 15, 16)),
        ("wan2.2-ti2v-5b", (121, "prefix", 9, None, 15, 24)),
        ("wan2.2-s2v-14b", (80, "clips", 73, None, 15, 16)),
        ("wan2.1-flf2v-14b-720p", (81, None, None, None, 5, 16)),
        ("tiny-ti2v", (361, None, None, None, 15, 24)),
    ],
)
def test_a_model_tells_how_long_it_goes_and_how_it_goes_on(model: str, told: tuple[Any, ...]):
    dto = model_dto(load_served(model, find_config_dir()))
    names = ("native_frames", "chaining", "overlap_frames", "prefix_frames", "up_to_s", "output_fps")
    assert tuple(dto[name] for name in names) == told


def test_the_rate_of_the_files_is_told_with_the_models_own(tmp_path: Path):
    with front_end(tmp_path, models="tiny,tiny-ti2v", output_fps="30") as front:
        said = front.client.get(f"/apps/{APP}").json()["data"]["version"]["metadata"]["models"]
    assert [(model["fps"], model["output_fps"]) for model in said] == [(16, 30), (24, 30)]


def test_what_no_model_can_do_is_said_with_the_reason(tmp_path: Path):
    with front_end(tmp_path, models="tiny-ti2v,wan2.1-i2v-14b-720p") as front:
        said = front.client.get(f"/apps/{APP}").json()["data"]["version"]["metadata"]
    able = {"+".join(ability["inputs"]): ability for ability in said["abilities"]}
    assert able["first_clip"]["models"] == {}
    assert able["first_clip"]["why_not"] == (
        "input.first_clip: no model of this server can do this. "
        "tiny-ti2v: model tiny-ti2v does not take it (it takes first_frame); "
        "wan2.1-i2v-14b-720p: model wan2.1-i2v-14b-720p does not take it (it takes first_frame)"
    )


def test_the_app_is_found_by_every_name_of_it(front: FrontEnd):
    one = front.client.get(f"/apps/{APP}").json()["data"]
    assert front.client.get(f"/apps/{one['id']}").json()["data"] == one
    assert front.client.get(f"/apps/{APP}@abc1").json()["data"] == one
    assert front.client.get(f"/apps/{APP}@abc1:run").json()["data"] == one | {"resolved_function": "run"}
    assert front.client.get(f"/apps/{one['id']}/versions/{one['version_id']}").json()["data"] == one["version"]
    listed = front.client.post("/apps/list", json={}).json()["data"]["items"]
    assert [app["name"] for app in listed] == ["wan-2-7-i2v", "wan-2-7-t2v"]
    assert listed[0] == one


def test_ids_do_not_change_between_starts():
    assert WAN_I2V.id == "x3g5ppwnb70026pxxw6b0066mh"
    assert WAN_I2V.version_id == "wa5vwz0bpawjchah70tsgfq9ma"


def end_soon(front: FrontEnd, how: Any) -> threading.Timer:
    """Ends the newest task in a moment."""

    def end() -> None:
        how(front.queue.latest)

    timer = threading.Timer(0.2, end)
    timer.start()
    return timer


@pytest.mark.parametrize(
    ("path", "body"), [("/apps/run", BODY | {"wait": True}), ("/run", BODY), ("/run?wait=true", BODY | {"wait": False})]
)
def test_a_waiting_run_answers_with_the_output(front: FrontEnd, path: str, body: Any):
    timer = end_soon(front, lambda task_id: front.complete(task_id, {"video": "https://x/v.mp4"}))
    answer = front.client.post(path, json=body)
    timer.join()
    data = answer.json()["data"]
    assert (answer.status_code, data["status"], data["output"]) == (200, 10, {"video": "https://x/v.mp4"})
    assert "logs" not in data


def test_a_waiting_run_that_fails_is_a_422_with_the_slim_result(front: FrontEnd):
    timer = end_soon(front, lambda task_id: front.fail(task_id, "input.first_frame: no picture"))
    answer = front.client.post("/apps/run", json=BODY | {"wait": True})
    timer.join()
    body = answer.json()
    assert (answer.status_code, body["detail"]) == (422, "input.first_frame: no picture")
    assert (body["data"]["status"], body["data"]["error"]) == (11, "input.first_frame: no picture")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_waiting_run_that_is_cancelled_is_a_422(front: FrontEnd):
    timer = end_soon(front, front.queue.cancel)
    answer = front.client.post("/run", json=BODY)
    timer.join()
    assert (answer.status_code, answer.json()["data"]["status"]) == (422, 12)


@pytest.mark.parametrize(("path", "body"), [("/run?wait=false", BODY), ("/run", BODY | {"wait": False})])
def test_the_older_name_need_not_wait(front: FrontEnd, path: str, body: Any):
    assert front.client.post(path, json=body).json()["data"]["status"] in (1, 2)


def test_a_shutdown_ends_the_wait_and_names_the_task(front: FrontEnd):
    timer = threading.Timer(0.2, front.app.state.draining.set)
    timer.start()
    answer = front.client.post("/run", json=BODY)
    front.app.state.draining.clear()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert front.queue.latest in answer.json()["detail"]
