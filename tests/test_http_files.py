"""Uploads and downloads over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from inferencesh import Inference

from front_end import BASE, FrontEnd, front_end, on_network
from media_samples import make_audio, make_image
from wan_server.ids import new_id
from wan_server.ranges import RangeNotSatisfiable, choose_span, etag_matches

DATA = b"0123456789abcdef"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    with front_end(tmp_path_factory.mktemp("files"), max_upload_bytes=100_000) as front:
        yield front


@pytest.fixture(scope="module")
def link(front: FrontEnd) -> str:
    return front.upload(DATA, filename="digits.txt", content_type="text/html")["uri"]


def create(front: FrontEnd, *slots: dict[str, Any]) -> Any:
    return front.client.post("/files", json={"files": list(slots)})


def test_an_upload_as_the_python_client_sends_it(front: FrontEnd, tmp_path: Path):
    picture = make_image(tmp_path / "ff.png", (640, 360), "PNG").read_bytes()
    slot = {"uri": "", "filename": "ff.png", "content_type": "image/png", "path": None, "size": 9, "public": None}
    made = create(front, slot).json()["data"][0]
    assert made["uri"] == f"{BASE}/app/files/{made['id']}/ff.png"
    assert made["upload_url"].startswith(f"{BASE}/files/")
    assert (made["metadata"], made["size"]) == (None, 9)
    stored = front.client.put(made["upload_url"], content=picture, headers={"Content-Type": "image/png"})
    assert stored.status_code == 200
    record = front.client.get(f"/files/{made['id']}").json()["data"]
    assert record == stored.json()["data"]
    assert (record["size"], record["upload_url"], record["content_type"]) == (len(picture), "", "image/png")
    expected = {"type": "image", "width": 640, "height": 360, "duration": None}
    assert record["metadata"].items() >= expected.items()


def test_a_slot_needs_nothing(front: FrontEnd):
    made = create(front, {}, {"size": None, "filename": None}).json()["data"]
    assert [slot["filename"] for slot in made] == ["file", "file"]
    assert made[0]["id"] != made[1]["id"]


@pytest.mark.parametrize(
    "body",
    [{}, {"files": None}, {"files": []}, {"files": [None]}, {"files": [{"size": -1}]}, {"files": [{}] * 101}, []],
)
def test_a_bad_slot_is_refused(front: FrontEnd, body: Any):
    answer = front.client.post("/files", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("body")


def test_sizes_beyond_the_cap_are_refused_early_and_late(front: FrontEnd):
    answer = create(front, {"size": 100_001})
    assert (answer.status_code, "at most 100000 bytes" in answer.json()["detail"]) == (413, True)
    url = create(front, {"size": 1}).json()["data"][0]["upload_url"]
    for content in (b"x" * 100_001, iter([b"x" * 60_000] * 2)):
        answer = front.client.put(url, content=content)
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert front.client.put(url, content=b"x" * 100_000).status_code == 200


def test_a_second_upload_must_be_the_same(front: FrontEnd):
    url = create(front, {}).json()["data"][0]["upload_url"]
    assert [front.client.put(url, content=data).status_code for data in (b"a", b"a", b"b")] == [200, 200, 409]


def test_an_upload_needs_its_signature(front: FrontEnd):
    made = create(front, {}).json()["data"][0]
    other = create(front, {}).json()["data"][0]
    path, _, query = made["upload_url"].partition("?")
    expired = urlencode(
        {"expires": int(time.time()) - 5, "signature": front.services.signer._sign(made["id"], int(time.time()) - 5)}
    )
    for url, status in (
        (f"{path}?{other['upload_url'].partition('?')[2]}", 401),
        (f"{path}?{query}0", 401),
        (f"{path}?{query.replace('expires=', 'expires=9')}", 401),
        (path, 422),
        (f"{path}?{expired}", 403),
    ):
        answer = front.client.put(url, content=b"x")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert front.client.get(made["uri"]).status_code == 404


def test_uploads_and_downloads_need_no_key_and_the_rest_does(tmp_path: Path):
    with front_end(tmp_path, api_keys=("secret",)) as front:
        keyed = {"Authorization": "Bearer secret"}
        assert front.client.post("/files", json={"files": [{}]}).status_code == 401
        made = front.client.post("/files", json={"files": [{}]}, headers=keyed).json()["data"][0]
        assert front.client.put(made["upload_url"], content=DATA).status_code == 200
        assert front.client.get(made["uri"]).content == DATA
        for method, path in (
            ("GET", f"/files/{made['id']}"),
            ("DELETE", f"/files/{made['id']}"),
            ("POST", "/files/list"),
        ):
            answer = front.client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
            assert "Bearer" in answer.headers["www-authenticate"]


def test_links_follow_the_host_or_the_setting(front: FrontEnd, tmp_path: Path):
    made = front.client.post("/files", json={"files": [{}]}, headers={"Host": "box.lan:9000"}).json()["data"][0]
    assert made["uri"].startswith("http://box.lan:9000/app/files/")
    with front_end(tmp_path, public_url="https://wan.example.org/box/") as public:
        made = create(public, {}).json()["data"][0]
        assert made["uri"].startswith("https://wan.example.org/box/app/files/")
        assert made["upload_url"].startswith("https://wan.example.org/box/files/")
        assert public.files.id_of(made["uri"]) == made["id"]


def test_a_download_is_whole_and_harmless(front: FrontEnd, link: str):
    answer = front.client.get(link)
    assert (answer.status_code, answer.content) == (200, DATA)
    headers = answer.headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"].startswith('inline; filename="digits.txt"')
    assert (headers["content-length"], headers["accept-ranges"]) == ("16", "bytes")
    assert "sandbox" in headers["content-security-policy"]


def test_names_cannot_break_headers(front: FrontEnd):
    uri = front.upload(DATA, filename='猫"\r\nSet-Cookie: a=b.png')["uri"]
    answer = front.client.get(uri)
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-disposition"].isascii()


def test_head_tells_without_sending(front: FrontEnd, link: str):
    whole, part = front.client.head(link), front.client.head(link, headers={"Range": "bytes=0-3"})
    assert (whole.status_code, whole.content, whole.headers["content-length"]) == (200, b"", "16")
    assert (part.status_code, part.content, part.headers["content-length"]) == (206, b"", "4")
    assert front.client.head(f"/app/files/{new_id()}/x").status_code == 404


@pytest.mark.parametrize(
    ("wanted", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/16"),
        ("bytes=10-", 206, b"abcdef", "bytes 10-15/16"),
        ("bytes=-4", 206, b"cdef", "bytes 12-15/16"),
        ("bytes=-99", 206, DATA, "bytes 0-15/16"),
        ("bytes=15-999", 206, b"f", "bytes 15-15/16"),
        ("BYTES = 1 - 2", 206, b"12", "bytes 1-2/16"),
        ("bytes=16-", 416, None, "bytes */16"),
        ("bytes=-0", 416, None, "bytes */16"),
        ("bytes=0-1,4-5", 200, DATA, None),
        ("bytes=5-2", 200, DATA, None),
        ("bytes=-", 200, DATA, None),
        ("items=0-1", 200, DATA, None),
        ("nonsense", 200, DATA, None),
    ],
)
def test_ranges(front: FrontEnd, link: str, wanted: str, status: int, content: bytes | None, content_range: str | None):
    answer = front.client.get(link, headers={"Range": wanted})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, content_range)
    if content is None:
        assert answer.headers["content-type"] == "application/problem+json"
    else:
        assert answer.content == content
        assert answer.headers["content-length"] == str(len(content))


def test_validators(front: FrontEnd, link: str):
    etag = front.client.get(link).headers["etag"]
    for sent in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        answer = front.client.get(link, headers={"If-None-Match": sent})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert front.client.get(link, headers={"If-None-Match": '"x"'}).status_code == 200
    for sent, status in ((etag, 206), ('"x"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)):
        assert front.client.get(link, headers={"Range": "bytes=0-3", "If-Range": sent}).status_code == status


def test_an_empty_file():
    assert choose_span({}, '"e"', 0).length == 0
    with pytest.raises(RangeNotSatisfiable):
        choose_span({"range": "bytes=0-"}, '"e"', 0)
    assert not etag_matches(None, '"e"')


def test_the_name_in_a_link_does_not_matter_and_the_id_does(front: FrontEnd, link: str):
    file_id = front.files.id_of(link)
    assert front.client.get(f"/app/files/{file_id}/anything.mp4").content == DATA
    assert front.client.get(f"/app/files/{new_id()}/digits.txt").status_code == 404


def test_a_deleted_file_is_gone(front: FrontEnd):
    made = front.upload(b"short-lived")
    assert front.client.delete(f"/files/{made['id']}").status_code == 204
    for path in (f"/files/{made['id']}", made["uri"]):
        assert front.client.get(path).status_code == 404
    assert front.client.delete(f"/files/{made['id']}").status_code == 404


def test_files_are_listed_page_by_page(tmp_path: Path):
    with front_end(tmp_path) as front:
        made = [slot["id"] for _ in range(5) for slot in create(front, {}).json()["data"]]
        seen: list[str] = []
        cursor = ""
        while True:
            page = front.client.post("/files/list", json={"limit": 2, "cursor": cursor}).json()["data"]
            seen += [item["id"] for item in page["items"]]
            cursor = page["next_cursor"]
            if not page["has_next"]:
                break
        assert seen == made[::-1]
        assert (page["items_per_page"], page["has_previous"]) == (2, True)


@pytest.mark.parametrize("cursor", ["x", "W10=", "WzEsICJ4Il0=", "bnVsbA==", "é"])
def test_foreign_cursors_are_refused(front: FrontEnd, cursor: str):
    answer = front.client.post("/files/list", json={"cursor": cursor})
    assert (answer.status_code, answer.json()["detail"][:7]) == (400, "cursor:")


def test_content_decides_the_type(front: FrontEnd, tmp_path: Path):
    sound = make_audio(tmp_path / "a.wav").read_bytes()
    assert len(sound) <= 100_000
    made = front.upload(sound, filename="a.png", content_type="image/png")
    assert front.client.get(made["uri"]).headers["content-type"] == "audio/wav"
    page = front.upload(b"<!doctype html><script>alert(1)</script>", filename="a.png", content_type="image/png")
    assert front.client.get(page["uri"]).headers["content-type"] == "application/octet-stream"


def test_the_python_client_uploads_paths_bytes_and_data(front: FrontEnd, tmp_path: Path):
    picture = make_image(tmp_path / "ff.png", (320, 240), "PNG")
    with on_network(front.app) as url:
        client = Inference(api_key="any", base_url=url)
        for data in (str(picture), picture.read_bytes(), "data:image/png;base64,iVBORw0KGgo="):
            made = client.files.upload(data)
            assert made["uri"].startswith(f"{url}/app/files/")
            assert httpx.get(made["uri"]).status_code == 200
