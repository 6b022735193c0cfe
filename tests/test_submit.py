"""POST /apps/run: what is accepted, what is refused at once and with which words, and what becomes of the input."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from front_end import APP, BASE, REMOTE, FrontEnd, front_end
from media_samples import make_audio, make_clip, make_image
from wan_server.files import FileStore
from wan_server.ids import is_id, new_id
from wan_server.job import Job


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with front_end(tmp_path_factory.mktemp("submit")) as front:
        yield front


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_image(tmp_path_factory.mktemp("media") / "a.png", (640, 360), "PNG").read_bytes()


def job_of(front: FrontEnd, answer: Any) -> Job:
    assert answer.status_code == 200, answer.text
    return front.queue.get(answer.json()["data"]["id"]).job


def refusal(answer: Any, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["detail"]


def stored(files: FileStore) -> set[str]:
    return {record.id for record in files.list(200)}


# ---- the answer ----------------------------------------------------------------------------------------------------


def test_a_run_is_answered_at_once_with_an_early_status(front: FrontEnd):
    began = time.monotonic()
    data = front.run().json()["data"]
    assert time.monotonic() - began < 2
    assert data["status"] in (1, 2)
    assert is_id(data["id"])
    assert data["short_id"] == data["id"][:8]
    assert data["output"] is None
    assert "error" not in data


def test_the_input_is_kept_with_its_defaults(front: FrontEnd):
    job = job_of(front, front.run({"first_frame": REMOTE, "seed": 5, "last_frame": "", "driving_audio": None}))
    assert job.input == {
        "prompt": "a calm sea",
        "first_frame": REMOTE,
        "resolution": "720P",
        "duration": 2,
        "prompt_extend": True,
        "watermark": False,
        "seed": 5,
    }
    assert (job.seed, job.model, job.app, job.base_url) == (5, "tiny", APP, BASE)
    assert (job.remote, job.files, job.not_honoured) == ({"first_frame": REMOTE}, {}, ())


def test_a_missing_seed_is_drawn(front: FrontEnd):
    seeds = {job_of(front, front.run()).seed for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("ref", [APP, f"app/{APP}", f"{APP}@abc1", f"{APP}@abc1:run", f"{APP}@latest"])
def test_every_form_of_the_reference_runs(front: FrontEnd, ref: str):
    assert job_of(front, front.run(app=ref)).app == APP


def test_an_app_may_be_named_by_id(front: FrontEnd):
    app_id = front.client.get(f"/apps/{APP}").json()["data"]["id"]
    assert job_of(front, front.run(app=None, app_id=app_id)).app == APP
    assert "no app has the id" in refusal(front.run(app=None, app_id="nobody"), 404)


def test_an_unknown_app_is_not_found_and_the_known_ones_are_named(front: FrontEnd):
    detail = refusal(front.run(app="alibaba/wan-9"), 404)
    assert detail == f"app: there is no app 'alibaba/wan-9' here; this server has {APP}, alibaba/wan-2-7-t2v"


def test_other_functions_are_refused(front: FrontEnd):
    assert refusal(front.run(function="dance")) == "function: must be run (got 'dance')"
    assert refusal(front.run(app=f"{APP}@1:dance")) == "function: must be run (got 'dance')"
    assert front.run(function="").status_code == front.run(function="run").status_code == 200


def test_nulls_and_unknown_keys_are_ignored(front: FrontEnd):
    nulls = dict.fromkeys(("setup", "infra", "workers", "webhook", "session", "run_at", "metadata", "wait", "stream"))
    assert front.run(**nulls, variant="x", nonsense={"a": 1}).status_code == 200


def test_unknown_input_fields_are_reported(front: FrontEnd):
    job = job_of(front, front.run({"first_frame": REMOTE, "image": "x"}))
    assert job.not_honoured == ("input.image is not a field of this app and was ignored",)


def test_the_rest_of_the_request_is_kept(front: FrontEnd):
    sent = {"infra": "cloud", "workers": ["w1"], "setup": {"a": 1}, "metadata": {"action": "x"}, "version_id": "v"}
    options = job_of(front, front.run(**sent)).options
    assert options.items() >= {"infra": "cloud", "setup": {"a": 1}, "app_version": "v", "user": "local"}.items()
    task = front.client.get(f"/tasks/{front.task(**sent)}").json()["data"]
    assert (task["workers"], task["setup"], task["metadata"], task["app_version_id"]) == (
        ["w1"],
        {"a": 1},
        {"action": "x"},
        "v",
    )
    assert "setup: must be at most" in refusal(front.run(setup={"a": "x" * 70_000}))


# ---- media ---------------------------------------------------------------------------------------------------------


def test_an_uploaded_link_becomes_a_file_that_has_been_examined(front: FrontEnd, picture: bytes):
    link = front.upload(picture, filename="a.png", content_type="text/html", size=1)["uri"]
    job = job_of(front, front.run({"first_frame": link}))
    assert job.input["first_frame"] == link
    assert front.files.id_of(link) == job.files["first_frame"]
    probe = front.files.get(job.files["first_frame"]).probe
    assert probe is not None
    assert (probe["format"], probe["width"], probe["height"]) == ("png", 640, 360)


@pytest.mark.parametrize(
    "form",
    [
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"data:;base64,{text}",
        lambda text: f"data:image/jpeg;name=a.jpg;base64,{text}",
        lambda text: text,
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        lambda text: {"uri": f"data:image/png;base64,{text}", "content_type": "image/png"},
    ],
)
def test_inline_media_is_stored_and_replaced_by_a_link(front: FrontEnd, picture: bytes, form: Any):
    job = job_of(front, front.run({"first_frame": form(base64.b64encode(picture).decode())}))
    link = job.input["first_frame"]
    assert link.startswith(f"{BASE}/app/files/")
    assert link.endswith("/first_frame.png")
    assert b"".join(front.files.read(job.files["first_frame"])) == picture
    assert front.client.get(link).content == picture


def test_a_percent_encoded_data_uri(front: FrontEnd, picture: bytes):
    text = "".join(f"%{byte:02x}" for byte in picture)
    job = job_of(front, front.run({"first_frame": f"data:image/png,{text}"}))
    assert b"".join(front.files.read(job.files["first_frame"])) == picture


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a.png", "must be an http(s) URL, a link from POST /files, a data URI, base64 data"),
        ("/home/me/pictures/first.png", "must be an http(s) URL"),
        ("file:///etc/passwd", "must be an http(s) URL"),
        ("ftp://example.org/first.png", "must be an http(s) URL"),
        ("data:image/png;base64", "is not a complete data URI"),
        ("data:image/png;base64,####", "does not hold valid base64"),
        ("http://", "must be an http(s) URL"),
        ("https://[bad/first.png", "must be an http(s) URL"),
        ("https://example.org:99999/x", "must be an http(s) URL"),
        ("https://user:pw@example.org/x", "must not carry a user name"),
        ("http://127.0.0.1/x.png", "must not be a private or local address"),
        ("http://localhost:9000/x.png", "must not be a private or local address"),
        ("http://[::ffff:10.0.0.1]/x.png", "must not be a private or local address"),
        ("http://169.254.169.254/latest/meta-data", "must not be a private or local address"),
        ("https://example.org/" + "x" * 5000, "must have at most 4096 characters"),
    ],
)
def test_other_texts_are_no_media(front: FrontEnd, value: str, message: str):
    detail = refusal(front.run({"first_frame": value}))
    assert detail.startswith(f"input.first_frame: {message}")
    assert len(detail) < 400


def test_private_addresses_are_a_setting(tmp_path: Path):
    with front_end(tmp_path, allow_private_urls=True) as front:
        local = "http://127.0.0.1:9/a.png"
        assert job_of(front, front.run({"first_frame": local}, webhook=local)).remote == {"first_frame": local}


def test_nothing_is_fetched_while_the_client_waits(front: FrontEnd):
    """An address that swallows packets: the answer must not wait for it."""
    began = time.monotonic()
    assert job_of(front, front.run({"first_frame": "http://8.8.8.8:81/first.png"})).remote
    assert time.monotonic() - began < 2


def test_a_link_that_was_never_filled_is_refused(front: FrontEnd):
    slot = front.client.post("/files", json={"files": [{"filename": "a.png"}]}).json()["data"][0]
    assert "was never uploaded" in refusal(front.run({"first_frame": slot["uri"]}))


def test_a_link_to_nothing_is_refused(front: FrontEnd):
    for uri in (f"{BASE}/app/files/{new_id()}/a.png", f"/app/files/{new_id()}/a.png"):
        assert "there is no file" in refusal(front.run({"first_frame": uri}))


def test_a_link_to_another_server_of_our_kind_is_remote(front: FrontEnd):
    uri = f"https://other.example.org/app/files/{new_id()}/a.png"
    assert job_of(front, front.run({"first_frame": uri})).remote == {"first_frame": uri}


@pytest.mark.parametrize(
    ("role", "make", "message"),
    [
        ("first_frame", lambda p: make_image(p, (120, 120)), "each side must be 240 to 8000 px (got 120x120)"),
        ("first_frame", lambda p: make_image(p, (2400, 240)), "aspect ratio must be 1:8 to 8:1 (got 2400x240)"),
        ("first_frame", lambda p: make_image(p, format="GIF"), "must be a JPEG, PNG, BMP or WEBP image (got a GIF)"),
        ("first_frame", lambda p: make_audio(p), "must be a JPEG, PNG, BMP or WEBP image (got a WAV)"),
        ("driving_audio", lambda p: make_audio(p, 1.0), "must be 2 to 30 s long (got 1 s)"),
        ("driving_audio", lambda p: make_image(p), "must be a WAV or MP3 audio (got a JPEG)"),
    ],
)
def test_media_outside_the_limits_is_refused_at_once(
    front: FrontEnd, tmp_path: Path, picture: bytes, role: str, make: Any, message: str
):
    before = stored(front.files)
    data = make(tmp_path / "sample").read_bytes()
    media = {"first_frame": REMOTE, role: "data:;base64," + base64.b64encode(data).decode()}
    assert refusal(front.run(media)) == f"input.{role}: {message}"
    assert stored(front.files) == before


def test_a_refused_request_keeps_none_of_its_inline_media(front: FrontEnd, picture: bytes):
    before = stored(front.files)
    good = "data:;base64," + base64.b64encode(picture).decode()
    refusal(front.run({"first_frame": good, "last_frame": "data:;base64," + base64.b64encode(b"no picture").decode()}))
    assert stored(front.files) == before


def test_uploads_survive_a_refusal(front: FrontEnd, picture: bytes):
    link = front.upload(picture, filename="a.png")["uri"]
    refusal(front.run({"first_frame": link, "last_frame": "nonsense"}))
    assert front.client.get(link).content == picture


def test_large_inline_media_is_refused_by_size(front: FrontEnd):
    text = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * (21 * 1024 * 1024)).decode()
    assert refusal(front.run({"first_frame": text})) == "input.first_frame: must be at most 20 MB (got 21.0 MB)"


@pytest.mark.parametrize(
    ("roles", "accepted"),
    [
        ("", False),
        ("first_frame", True),
        ("first_frame driving_audio", True),
        ("first_frame last_frame", True),
        ("first_frame last_frame driving_audio", True),
        ("last_frame", False),
        ("driving_audio", False),
        ("first_frame first_clip", False),
        ("first_clip driving_audio", False),
        ("last_frame driving_audio", False),
    ],
)
def test_only_the_listed_combinations_are_taken(front: FrontEnd, roles: str, accepted: bool):
    media = {"first_frame": None} | dict.fromkeys(roles.split(), REMOTE)
    answer = front.run(media)
    if accepted:
        assert job_of(front, answer).remote.keys() == set(roles.split())
    else:
        assert refusal(answer).startswith("input: ")


def test_an_empty_input_is_refused_for_its_media(front: FrontEnd):
    for sent in ({}, None):
        body = {"app": APP, "input": sent}
        assert "media input is required" in refusal(front.client.post("/apps/run", json=body))


def test_a_role_that_the_model_cannot_honour_is_refused_with_its_name(tmp_path: Path):
    with front_end(tmp_path, model="tiny-ti2v") as front:
        detail = refusal(front.run({"first_clip": REMOTE}))
    assert detail.startswith("input.first_clip: ")
    assert "tiny-ti2v" in detail
    assert "first_frame" in detail


def test_a_clip_must_leave_room_in_the_video(front: FrontEnd, tmp_path: Path):
    """The length of an uploaded or inline clip is known at once; one behind a URL is the worker's to judge."""
    clip = make_clip(tmp_path / "a.mp4", seconds=3.0).read_bytes()
    link = front.upload(clip, filename="a.mp4")["uri"]
    before = stored(front.files)
    for value in (link, f"data:video/mp4;base64,{base64.b64encode(clip).decode()}"):
        detail = refusal(front.run({"first_clip": value, "duration": 3}))
        assert detail.startswith("input.duration: must be longer than first_clip")
        assert "(got 3 s and a clip of 3 s)" in detail
    assert stored(front.files) == before
    assert job_of(front, front.run({"first_clip": link, "duration": 4})).files.keys() == {"first_clip"}
    assert job_of(front, front.run({"first_clip": REMOTE, "duration": 2})).remote.keys() == {"first_clip"}


def test_a_duration_that_the_model_cannot_do_is_refused(tmp_path: Path):
    with front_end(tmp_path, model="wan2.1-flf2v-14b-720p") as front:
        limit = front.services.catalog.profiles[0].max_seconds
        assert limit < 15
        detail = refusal(front.run({"first_frame": REMOTE, "last_frame": REMOTE, "duration": 15}))
        assert detail.startswith("input.duration: ")
        assert str(limit) in detail


def test_sound_that_the_model_does_not_hear_is_reported(front: FrontEnd):
    job = job_of(front, front.run({"first_frame": REMOTE, "driving_audio": REMOTE}))
    assert job.remote.keys() == {"first_frame", "driving_audio"}
    assert job.not_honoured[0].startswith("input.driving_audio: model tiny does not listen to it")


def test_a_last_frame_needs_a_model_that_honours_it(tmp_path: Path):
    with front_end(tmp_path, model="tiny-ti2v") as front:
        assert refusal(front.run({"first_frame": REMOTE, "last_frame": REMOTE})).startswith("input.last_frame: ")


def test_the_caps_of_the_hosted_page_are_a_setting(front: FrontEnd, tmp_path: Path):
    long, both = {"first_frame": REMOTE, "resolution": "1080P", "duration": 11}, {"first_frame": REMOTE, "duration": 6}
    both["last_frame"] = REMOTE
    assert front.run(long).status_code == front.run(both).status_code == 200
    with front_end(tmp_path, hosted_page_caps=True) as capped:
        assert refusal(capped.run(long)) == "input.duration: must be at most 10 with resolution 1080P (got 11)"
        assert "must be at most 5 with first_frame and last_frame (got 6)" in refusal(capped.run(both))
        assert capped.run(long | {"duration": 10}).status_code == 200
        assert capped.run(both | {"duration": 5}).status_code == 200


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "resolution"])
def test_a_text_that_the_client_uploaded_by_mistake_is_recognised(front: FrontEnd, field: str):
    link = front.upload(b"morphingblurrywatermark1", filename=None)["uri"]
    detail = refusal(front.run({"first_frame": REMOTE, field: link}))
    assert detail.startswith(f"input.{field}: is the link of an uploaded file. The Python SDK uploads every text")
    assert front.run({"first_frame": REMOTE, "prompt": f"like {link}"}).status_code == 200


# ---- the rest of the request ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"webhook": "nonsense"}, "webhook: must be an http(s) URL (got 'nonsense')"),
        ({"webhook": "ftp://example.org/hook"}, "webhook: must be an http(s) URL"),
        ({"webhook": "http://10.1.2.3/hook"}, "webhook: must not be a private or local address"),
        ({"session_timeout": 60}, 'session_timeout: is only allowed with session "new"'),
        ({"session": "new", "session_timeout": 3601}, "session_timeout: must be at most 3600 (got 3601)"),
        ({"run_at": "tomorrow"}, "run_at: must be an ISO 8601 time (got 'tomorrow')"),
        ({"run_at": "0001-01-01T00:00:00+23:59"}, "run_at: must be an ISO 8601 time"),
    ],
)
def test_bad_parameters_are_refused_by_name(front: FrontEnd, more: dict[str, Any], message: str):
    assert refusal(front.run(**more)).startswith(message)


def test_a_webhook_is_kept(front: FrontEnd):
    task = front.client.get(f"/tasks/{front.task(webhook='https://example.org/hook')}").json()["data"]
    assert task["webhook"] == "https://example.org/hook"


def test_a_start_in_the_future_delays_the_task(front: FrontEnd):
    at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    answer = front.run(run_at=at).json()["data"]
    assert answer["run_at"][:19] == at[:19]
    assert front.queue.get(answer["id"]).position is None
    assert "starts after" in front.client.get(f"/tasks/{answer['id']}").json()["data"]["logs"][-1]["content"]


@pytest.mark.parametrize("at", ["2020-01-01T00:00:00Z", "2020-01-01", "2020-01-01T00:00:00+05:00"])
def test_a_start_in_the_past_is_now(front: FrontEnd, at: str):
    assert front.queue.get(front.task(run_at=at)).position is not None


def test_the_far_future_is_no_error(front: FrontEnd):
    assert front.run(run_at="9999-12-31T23:59:59Z").status_code == 200


def test_sessions_are_minted_and_taken_up(front: FrontEnd):
    first = front.run(session="new", session_timeout=60).json()["data"]
    assert is_id(first["session_id"])
    second = front.run(session=first["session_id"]).json()["data"]
    assert second["session_id"] == first["session_id"]
    assert second["id"] != first["id"]
    assert refusal(front.run(session="nonsense"), 404).startswith("session: there is no session")


def test_a_full_queue_says_when_to_come_back(tmp_path: Path):
    with front_end(tmp_path, max_queue=2) as front:
        tasks = [front.task() for _ in range(2)]
        answer = front.run()
        assert "2 tasks are waiting" in refusal(answer, 429)
        assert int(answer.headers["retry-after"]) > 0
        front.client.post(f"/tasks/{tasks[0]}/cancel").raise_for_status()
        assert front.run().status_code == 200


# ---- idempotency ---------------------------------------------------------------------------------------------------


def post(front: FrontEnd, key: str, **given: Any) -> Any:
    body = {"app": APP, "input": {"first_frame": REMOTE, "duration": 2, **given}}
    return front.client.post("/apps/run", json=body, headers={"Idempotency-Key": key})


def test_the_same_key_and_body_are_the_same_task(front: FrontEnd):
    one, again = post(front, "k1").json()["data"], post(front, "k1").json()["data"]
    assert one == again
    assert post(front, "k2").json()["data"]["id"] != one["id"]
    assert front.queue.get(one["id"]).job.seed == front.queue.get(again["id"]).job.seed


def test_the_same_key_with_another_body_is_a_conflict(front: FrontEnd):
    post(front, "k3").raise_for_status()
    assert "already used with another body" in refusal(post(front, "k3", duration=3), 409)


def test_a_replay_answers_as_the_first_time_even_when_the_task_has_ended(front: FrontEnd):
    task_id = post(front, "k4").json()["data"]["id"]
    front.complete(task_id, {"video": "v"})
    data = post(front, "k4").json()["data"]
    assert (data["id"], data["status"], data["output"]) == (task_id, 1, None)


def test_a_refused_request_does_not_use_up_its_key(front: FrontEnd):
    refusal(post(front, "k5", duration=99))
    assert post(front, "k5").status_code == 200


def test_replays_at_the_same_moment_are_one_task(front: FrontEnd):
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: post(front, "k6"), range(6)))
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1


def test_other_bodies_at_the_same_moment_are_conflicts(front: FrontEnd):
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seconds: post(front, "k7", duration=seconds), range(2, 8)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409, 409]


def test_keys_of_different_callers_do_not_meet(tmp_path: Path):
    with front_end(tmp_path, api_keys=("one", "two")) as front:
        body = {"app": APP, "input": {"first_frame": REMOTE}}
        ids = [
            front.client.post(
                "/apps/run", json=body, headers={"Idempotency-Key": "k", "Authorization": f"Bearer {token}"}
            ).json()["data"]["id"]
            for token in ("one", "two", "one")
        ]
        assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_bad_key_is_refused(front: FrontEnd, key: str):
    assert refusal(post(front, key), 400).startswith("Idempotency-Key: must have")
