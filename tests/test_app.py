"""The routes of tasks, sessions and health, the document, and the keys in front of all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from front_end import APP, FrontEnd, front_end
from media_samples import make_image
from queue_fixtures import make_settings
from wan_server.app import build_app
from wan_server.ids import is_id
from wan_server.tables import WorkerRow


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with front_end(tmp_path_factory.mktemp("app")) as front:
        yield front


def data_of(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


# ---- tasks ---------------------------------------------------------------------------------------------------------


def test_a_task_is_read_whole_and_in_parts(front: FrontEnd):
    task_id = front.task()
    task = data_of(front.client.get(f"/tasks/{task_id}"))
    assert (task["id"], task["status"], task["status_text"], task["progress"]) == (task_id, 2, "queued", 0)
    assert task["logs"][-1]["content"].startswith("queued: ")
    status = data_of(front.client.get(f"/tasks/{task_id}/status"))
    assert {name: task[name] for name in ("id", "status", "updated_at")}.items() <= status.items()
    logs = data_of(front.client.get(f"/tasks/{task_id}/logs"))
    assert (logs["task_id"], logs["events"]) == (task_id, task["events"])
    timings = data_of(front.client.get(f"/tasks/{task_id}/timings"))
    assert [event["status"] for event in timings["events"]] == ["received", "queued"]


def test_cancelling_is_seen_at_once_and_only_possible_once(front: FrontEnd):
    task_id = front.task()
    answer = data_of(front.client.post(f"/tasks/{task_id}/cancel"))
    assert (answer["id"], answer["status"], answer["cancelled"]) == (task_id, 12, True)
    assert data_of(front.client.get(f"/tasks/{task_id}"))["status_text"] == "cancelled"
    again = front.client.post(f"/tasks/{task_id}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "invalid_transition")


def test_only_a_finished_task_is_deleted(front: FrontEnd):
    task_id = front.task()
    refused = front.client.delete(f"/tasks/{task_id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_transition")
    front.client.post(f"/tasks/{task_id}/cancel")
    assert front.client.delete(f"/tasks/{task_id}").status_code == 204
    assert front.client.get(f"/tasks/{task_id}").status_code == 404
    assert front.client.delete(f"/tasks/{task_id}").status_code == 404


def with_files(front: FrontEnd, tmp_path: Path) -> tuple[str, str, str]:
    """A cancelled task with an input and an output file; ids of all three."""
    picture = make_image(tmp_path / "a.png", (320, 240), "PNG")
    given = front.upload(picture.read_bytes(), filename="a.png")
    task_id = front.task(media={"first_frame": given["uri"]})
    made = front.files.ingest(picture, filename="v.mp4", content_type="video/mp4", task_id=task_id, role="output")
    front.client.post(f"/tasks/{task_id}/cancel")
    return task_id, given["id"], made.id


def test_a_task_lists_what_it_used_and_made(front: FrontEnd, tmp_path: Path):
    task_id, given, made = with_files(front, tmp_path)
    listed = data_of(front.client.get(f"/tasks/{task_id}/files"))
    assert [(item["id"], item["role"]) for item in listed] == [(given, "input"), (made, "output")]
    assert (listed[1]["content_type"], listed[1]["filename"]) == ("video/mp4", "v.mp4")
    only = data_of(front.client.get(f"/tasks/{task_id}/files?role=output"))
    assert [item["id"] for item in only] == [made]
    assert front.client.get(f"/tasks/{task_id}/files?role=x").status_code == 400


def test_a_tasks_files_are_deleted_by_role_and_the_task_stays(front: FrontEnd, tmp_path: Path):
    task_id, given, made = with_files(front, tmp_path)
    answer = data_of(front.client.delete(f"/tasks/{task_id}/files?role=input"))
    assert answer == {"deleted": [given], "skipped": []}
    assert [item["id"] for item in data_of(front.client.get(f"/tasks/{task_id}/files"))] == [made]
    assert data_of(front.client.delete(f"/tasks/{task_id}/files"))["deleted"] == [made]


def test_files_that_another_task_needs_stay(front: FrontEnd, tmp_path: Path):
    task_id, given, made = with_files(front, tmp_path)
    waiting = front.task(media={"first_frame": data_of(front.client.get(f"/files/{given}"))["uri"]})
    assert front.client.delete(f"/files/{given}").status_code == 409
    answer = data_of(front.client.delete(f"/tasks/{task_id}/files"))
    assert answer == {"deleted": [made], "skipped": [given]}
    front.client.post(f"/tasks/{waiting}/cancel")
    assert front.client.delete(f"/files/{given}").status_code == 204


def test_the_files_of_an_unfinished_task_stay(front: FrontEnd):
    assert front.client.delete(f"/tasks/{front.task()}/files").status_code == 409


@pytest.mark.parametrize(("query", "left"), [("", 200), ("?files=true", 404)])
def test_a_task_goes_with_or_without_its_files(front: FrontEnd, tmp_path: Path, query: str, left: int):
    task_id, given, made = with_files(front, tmp_path)
    assert front.client.delete(f"/tasks/{task_id}{query}").status_code == 204
    assert [front.client.get(f"/files/{file_id}").status_code for file_id in (given, made)] == [left, left]


# ---- lists ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FrontEnd, list[str]]]:
    """A front end with five tasks, the second and fourth of them cancelled."""
    with front_end(tmp_path_factory.mktemp("list")) as front:
        tasks = [front.task() for _ in range(5)]
        for task_id in tasks[1::2]:
            front.client.post(f"/tasks/{task_id}/cancel")
        yield front, tasks


def ids(front: FrontEnd, **body: Any) -> list[str]:
    return [item["id"] for item in data_of(front.client.post("/tasks/list", json=body))["items"]]


def test_a_filtered_page_is_full(listed: tuple[FrontEnd, list[str]]):
    front, tasks = listed
    found = ids(front, limit=2, filters=[{"field": "status", "operator": "in", "value": [12]}])
    assert sorted(found) == sorted(tasks[1::2])


def test_a_search_is_refused(listed: tuple[FrontEnd, list[str]]):
    answer = listed[0].client.post("/tasks/list", json={"search": {"term": "x"}})
    assert (answer.status_code, answer.json()["detail"]) == (422, "search: is not possible here; use filters")


def where(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"filters": [{"field": field, "operator": operator, "value": value}]}


def test_tasks_are_listed_page_by_page(listed: tuple[FrontEnd, list[str]]):
    front, tasks = listed
    seen: list[str] = []
    cursor = None
    for more in (True, True, False):
        page = data_of(front.client.post("/tasks/list", json={"limit": 2, "cursor": cursor}))
        assert page.keys() == {"items", "next_cursor", "prev_cursor", "has_next", "has_previous", "items_per_page"}
        assert (page["has_next"], page["has_previous"], page["items_per_page"]) == (more, bool(seen), 2)
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert sorted(seen) == sorted(tasks)
    assert ids(front, sort=[{"field": "created_at", "dir": "asc"}]) == seen[::-1]
    assert ids(front) == ids(front, limit=None, filters=None, sort=None, search={}, preloads=["app"]) == seen


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (where("status", "eq", 12), [3, 1]),
        (where("status", "eq", "cancelled"), [3, 1]),
        (where("status", "neq", "cancelled"), [4, 2, 0]),
        (where("status", "in", [2, "cancelled"]), [4, 3, 2, 1, 0]),
        (where("status", "not_in", ["queued"]), [3, 1]),
        (where("status", "gte", 10), [3, 1]),
        (where("app", "eq", APP), [4, 3, 2, 1, 0]),
        (where("app", "eq", "other/app"), []),
        (where("created_at", "lt", "2020-01-01T00:00:00Z"), []),
        (where("created_at", "gt", "2020-01-01T00:00:00Z"), [4, 3, 2, 1, 0]),
    ],
)
def test_lists_are_filtered(listed: tuple[FrontEnd, list[str]], condition: Any, expected: list[int]):
    front, tasks = listed
    assert sorted(ids(front, **condition)) == sorted(tasks[i] for i in expected)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (where("colour", "eq", "red"), 400, "filters.field: 'colour' is not one of status, app, created_at"),
        (where("status", "like", "x"), 400, "filters.operator: 'like' is not one of eq"),
        (where("status", "eq", "asleep"), 400, "filters.status: 'asleep' is not a status"),
        (where("status", "eq", [1]), 400, "filters.status"),
        (where("status", "in", 1), 400, "filters.value: must be a list"),
        (where("app", "eq", 5), 400, "filters.value: must be a string"),
        (where("created_at", "gt", "soon"), 422, "filters.created_at: must be an ISO 8601 time"),
        ({"sort": [{"field": "status", "dir": "asc"}]}, 400, "sort: only created_at"),
        ({"sort": [{"field": "created_at", "dir": "up"}]}, 400, "sort: only created_at"),
        ({"cursor": "nonsense"}, 400, "cursor: "),
        ({"limit": -1}, 422, "limit: must be at least 0"),
        ({"limit": "many"}, 422, "limit: must be a whole number"),
        ([], 422, "body: must be an object"),
    ],
)
def test_bad_lists_are_refused_by_name(front: FrontEnd, body: Any, status: int, message: str):
    answer = front.client.post("/tasks/list", json=body)
    assert (answer.status_code, answer.json()["detail"][: len(message)]) == (status, message)


# ---- sessions ------------------------------------------------------------------------------------------------------


def test_a_session_is_what_its_tasks_say(front: FrontEnd):
    session = front.run(session="new", session_timeout=60).json()["data"]["session_id"]
    last = front.task(session=session)
    found = data_of(front.client.get(f"/sessions/{session}"))
    assert (found["id"], found["status"], found["call_count"], found["idle_timeout"]) == (session, "active", 2, 60)
    assert found["task_id"] == last
    assert session in [item["id"] for item in data_of(front.client.get("/sessions"))]
    assert data_of(front.client.post(f"/sessions/{session}/keepalive"))["id"] == session
    assert front.client.delete(f"/sessions/{session}").status_code == 204
    assert data_of(front.client.get(f"/tasks/{last}"))["session_id"] == session


def test_unknown_sessions_are_not_found(front: FrontEnd):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/keepalive")):
        answer = front.client.request(method, f"/sessions/nobody{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "SESSION_NOT_FOUND")


# ---- health --------------------------------------------------------------------------------------------------------


def worker(state: str, age_s: float = 0) -> WorkerRow:
    return WorkerRow("w1", "box", 1, state, "tiny", "cpu", None, 1.0, time.time() - age_s)


def test_ready_means_that_a_worker_takes_jobs(tmp_path: Path):
    with front_end(tmp_path, heartbeat_timeout_s=20) as front:
        assert front.client.get("/healthz").status_code == 200
        for row, reason in (
            (None, "no worker is running"),
            (worker("loading"), "worker w1 is loading"),
            (worker("ready", age_s=30), "no worker is running"),
            (worker("stopping"), "worker w1 is stopping"),
        ):
            if row:
                front.queue.workers.beat(row)
            answer = front.client.get("/readyz")
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert reason in answer.json()["detail"]
        front.queue.workers.beat(worker("ready"))
        assert front.client.get("/readyz").json()["workers"][0]["model"] == "tiny"
        front.app.state.draining.set()
        assert front.client.get("/readyz").status_code == 503


# ---- keys and the document -----------------------------------------------------------------------------------------

OPEN = {"/healthz", "/readyz", "/app/files/{file_id}/{name}", "/files/{file_id}/content"}


def test_every_other_route_needs_a_key(tmp_path: Path):
    with front_end(tmp_path, api_keys=("secret",)) as front:
        document = front.client.get("/openapi.json").json()
        for path, operations in document["paths"].items():
            for method in operations:
                url = path.replace("{", "").replace("}", "")
                refused = (
                    front.client.request(method, url, headers={"Authorization": "Bearer wrong"}).status_code == 401
                )
                assert refused == (path not in OPEN), (method, path)
        assert front.client.get("/sessions", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_body_is_not_read_for_strangers(tmp_path: Path):
    with front_end(tmp_path, api_keys=("secret",)) as front:
        assert front.client.post("/apps/run", content=b"{").status_code == 401


def test_the_document_names_every_route_of_the_protocol(front: FrontEnd):
    document = front.client.get("/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert routes >= {
        "POST /apps/run",
        "POST /run",
        "GET /tasks/{task_id}",
        "GET /tasks/{task_id}/stream",
        "GET /tasks/{task_id}/status",
        "GET /tasks/{task_id}/logs",
        "GET /tasks/{task_id}/files",
        "DELETE /tasks/{task_id}/files",
        "POST /tasks/{task_id}/cancel",
        "DELETE /tasks/{task_id}",
        "POST /tasks/list",
        "POST /files",
        "PUT /files/{file_id}/content",
        "POST /files/list",
        "GET /files/{file_id}",
        "DELETE /files/{file_id}",
        "GET /app/files/{file_id}/{name}",
        "GET /apps/{namespace}/{name}",
        "GET /apps/{app_id}",
        "GET /apps/{app_id}/versions/{version_id}",
        "POST /apps/list",
    }


def test_every_reference_in_the_document_resolves(front: FrontEnd):
    document = front.client.get("/openapi.json").json()
    text = front.client.get("/openapi.json").text
    named = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= document["components"]["schemas"].keys()
    assert '"#/$defs' not in text


def test_the_real_parts_fit_together(tmp_path: Path):
    from starlette.testclient import TestClient

    with TestClient(build_app(make_settings(tmp_path)), "http://127.0.0.1:8000") as client:
        assert client.get("/healthz").status_code == 200
        made = client.post("/files", json={"files": [{}]}).json()["data"][0]
        assert is_id(made["id"])
    assert (tmp_path / "wanbox.db").exists()
