"""The outer shape of answers: envelope, bare data, problem+json for every error, and forgiving paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from inferencesh.models.errors import APIError

from front_end import APP, REMOTE, FrontEnd, front_end
from wan_server.middleware import normalise_path


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with front_end(tmp_path_factory.mktemp("envelope"), max_request_bytes=4096) as front:
        yield front


def check_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """A problem that the official client of every generation understands."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["success"] is False
    assert body["error"] == {"code": code, "message": body["detail"]}
    assert "errors" not in body
    assert APIError(status, body["detail"], answer.text).code == code
    return body


def test_data_comes_in_an_envelope_for_old_and_new_clients(front: FrontEnd):
    body = front.client.get(f"/apps/{APP}").json()
    assert body.keys() == {"success", "status", "data", "messages"}
    assert (body["success"], body["status"], body["messages"]) == (True, 200, [])


def test_version_2_clients_get_bare_data(front: FrontEnd):
    bare = front.client.get(f"/apps/{APP}", headers={"X-API-Version": "2"}).json()
    assert bare == front.client.get(f"/apps/{APP}").json()["data"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("POST", "/agents/run", 404, "not_found"),
        ("GET", "/sockets/x", 404, "not_found"),
        ("GET", "/tasks/x", 404, "not_found"),
        ("GET", "/files/x", 404, "not_found"),
        ("GET", "/apps/a/b", 404, "not_found"),
        ("GET", "/sessions/x", 404, "SESSION_NOT_FOUND"),
        ("PUT", "/apps/run", 405, "method_not_allowed"),
        ("PATCH", "/tasks/x", 405, "method_not_allowed"),
        ("DELETE", "/tasks/x?files=perhaps", 422, "validation_error"),
        ("PUT", "/files/x/content", 422, "validation_error"),
    ],
)
def test_every_error_is_a_problem(front: FrontEnd, method: str, path: str, status: int, code: str):
    check_problem(front.client.request(method, path), status, code)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 5000, b"nonsense"])
@pytest.mark.parametrize("path", ["/apps/run", "/files", "/tasks/list"])
def test_what_is_no_json_is_a_400(front: FrontEnd, path: str, content: bytes):
    answer = front.client.post(path, content=content[:4000])
    assert check_problem(answer, 400, "invalid_request")["detail"].startswith("body: ")


@pytest.mark.parametrize("content", [b"[]", b"5", b'"x"', b"null", b"{}", b""])
def test_json_of_the_wrong_shape_is_a_422(front: FrontEnd, content: bytes):
    check_problem(front.client.post("/apps/run", content=content), 422, "validation_error")


def chunked() -> Iterator[bytes]:
    for _ in range(9):
        yield b" " * 1000


def test_a_body_beyond_the_cap_is_a_413(front: FrontEnd):
    for content in (b" " * 5000, chunked()):
        body = check_problem(front.client.post("/apps/run", content=content), 413, "limit_exceeded")
        assert "at most 4096 bytes" in body["detail"]


def test_details_name_the_field_for_clients_that_show_nothing_else(front: FrontEnd):
    answer = front.run({"first_frame": REMOTE, "duration": 20})
    assert check_problem(answer, 422, "validation_error")["detail"] == "input.duration: must be at most 15 (got 20)"


def test_a_bug_is_a_problem_without_its_insides(front: FrontEnd, monkeypatch: pytest.MonkeyPatch):
    def broken(_job_id: str) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(front.queue, "get", broken)
    answer = front.client.get("/tasks/x")
    check_problem(answer, 500, "internal_error")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "path", ["//apps/alibaba//wan-2-7-i2v", f"/apps/{APP}/", f"/v1/apps/{APP}", f"//v1//apps/{APP}///"]
)
def test_sloppy_paths_are_understood(front: FrontEnd, path: str):
    assert front.client.get(f"http://127.0.0.1:8000{path}").status_code == 200


@pytest.mark.parametrize(
    ("path", "clean"),
    [("/", "/"), ("//", "/"), ("/v1", "/v1"), ("/v1/x", "/x"), ("/v12/x", "/v12/x"), ("/a//b/", "/a/b")],
)
def test_paths_are_normalised(path: str, clean: str):
    assert normalise_path(path) == clean


@pytest.mark.parametrize("host", ["a b", "x/y", "x\\y", "x:99999999", "<script>"])
def test_a_host_that_cannot_be_in_a_link_is_refused(front: FrontEnd, host: str):
    check_problem(front.client.get("/healthz", headers={"Host": host}), 400, "invalid_request")


ORIGIN = "https://page.example.org"


def test_browsers_may_call_from_other_pages(front: FrontEnd):
    asked = "authorization,content-type,x-client-source,idempotency-key,range"
    for method in ("POST", "PUT", "GET", "DELETE"):
        headers = {"Origin": ORIGIN, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": asked}
        answer = front.client.options("/files", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert set(asked.split(",")) <= {
            h.strip().lower() for h in answer.headers["access-control-allow-headers"].split(",")
        }


def test_browsers_can_read_errors_and_ranges(front: FrontEnd):
    answer = front.client.get("/nope", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Content-Range" in answer.headers["access-control-expose-headers"]
