"""The file store on a local folder and on a file system that is not local."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from queue_fixtures import make_settings
from wan_server.errors import Conflict, NotFound, TooLarge
from wan_server.files import OCTETS, FileRecord, FileStore, clean_name, safe_name
from wan_server.ids import new_id

BASE = "http://box:8000"


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileStore]:
    url = f"file://{tmp_path}/store" if request.param == "local" else f"memory://{new_id()}"
    store = FileStore(make_settings(tmp_path, store_url=url, max_upload_bytes=1000))
    yield store
    store.engine.dispose()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def receive(files: FileStore, record: FileRecord, *parts: bytes) -> FileRecord:
    return asyncio.run(files.receive(record.id, chunks(*parts)))


def blobs(files: FileStore) -> list[str]:
    return files.blobs.fs.find(f"{files.blobs.root}/blobs")


def everything(files: FileStore) -> list[str]:
    return files.blobs.fs.find(files.blobs.root)


def test_an_upload_is_stored_under_its_hash(files: FileStore):
    slot = files.create("a.png", "image/png", 6)
    assert (slot.stored, slot.size, slot.sha256) == (False, 6, None)
    stored = receive(files, slot, b"abc", b"", b"defg")
    digest = hashlib.sha256(b"abcdefg").hexdigest()
    assert (stored.stored, stored.size, stored.sha256) == (True, 7, digest)
    assert files.get(slot.id) == stored
    assert [path.rsplit("/", 2)[1:] for path in everything(files)] == [[digest[:2], digest]]
    with files.local(slot.id) as path:
        assert path.read_bytes() == b"abcdefg"


def test_a_slot_takes_the_same_bytes_again_and_no_others(files: FileStore):
    slot = files.create("a", None, None)
    assert receive(files, slot, b"same") == receive(files, slot, b"sa", b"me")
    with pytest.raises(Conflict, match="other content"):
        receive(files, slot, b"other")
    assert b"".join(files.read(slot.id)) == b"same"
    assert len(everything(files)) == 1


def test_too_many_bytes_leave_nothing_behind(files: FileStore):
    slot = files.create("a", None, None)
    with pytest.raises(TooLarge, match="at most 1000 bytes"):
        receive(files, slot, b"x" * 600, b"x" * 401)
    assert everything(files) == []
    assert not files.get(slot.id).stored
    with pytest.raises(TooLarge, match="got 1001"):
        files.create("a", None, 1001)
    with pytest.raises(TooLarge):
        files.ingest_bytes(b"x" * 1001, filename=None, content_type=None)


def test_a_broken_upload_leaves_nothing_behind(files: FileStore):
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    slot = files.create("a", None, None)
    with pytest.raises(ConnectionResetError):
        asyncio.run(files.receive(slot.id, broken()))
    assert everything(files) == []
    assert not files.get(slot.id).stored


def test_a_file_that_was_never_uploaded_cannot_be_read(files: FileStore):
    slot = files.create("a", None, 3)
    with pytest.raises(NotFound, match="never uploaded"):
        files.read(slot.id)
    with pytest.raises(NotFound, match="never uploaded"), files.local(slot.id):
        pass


@pytest.mark.parametrize("file_id", ["", "nobody", "../../etc/passwd", "0123456789abcdefghjkmnpqrs"])
def test_unknown_ids_are_not_found(files: FileStore, file_id: str):
    for use in (files.get, files.delete):
        with pytest.raises(NotFound):
            use(file_id)


def test_equal_files_share_their_bytes_until_the_last_is_deleted(files: FileStore):
    one = files.ingest_bytes(b"equal", filename="1", content_type=None)
    two = files.ingest_bytes(b"equal", filename="2", content_type=None)
    assert one.sha256 == two.sha256
    assert len(blobs(files)) == 1
    files.delete(one.id)
    assert b"".join(files.read(two.id)) == b"equal"
    files.delete(two.id)
    assert blobs(files) == []


def test_outputs_are_copied_in_whatever_their_size(files: FileStore, tmp_path: Path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"v" * 5000)
    task_id = new_id()
    record = files.ingest(path, filename="v.mp4", content_type="video/mp4", task_id=task_id, role="output")
    assert path.exists()
    assert (record.size, record.role, record.served_type) == (5000, "output", "video/mp4")
    assert files.for_task(task_id) == [record]
    assert files.for_task(new_id()) == []


def test_reading_a_part(files: FileStore):
    record = files.ingest_bytes(b"0123456789", filename=None, content_type=None)
    assert b"".join(files.read(record.id, 3, 4)) == b"3456"
    assert b"".join(files.read(record.id, 8)) == b"89"
    assert b"".join(files.read(record.id, 0, 0)) == b""


def test_pages_go_from_new_to_old_without_gaps(tmp_path: Path):
    times = iter([1.0, 2.0, 2.0, 2.0, 3.0])
    store = FileStore(make_settings(tmp_path), clock=lambda: next(times))
    made = [store.create(str(i), None, None) for i in range(5)]
    seen: list[FileRecord] = []
    while batch := store.list(2, (seen[-1].created_at, seen[-1].id) if seen else None):
        seen += batch
    assert [record.created_at for record in seen] == [3.0, 2.0, 2.0, 2.0, 1.0]
    assert {record.id for record in seen} == {record.id for record in made}
    store.engine.dispose()


def test_the_content_decides_what_is_served(files: FileStore):
    record = files.ingest_bytes(b"<html>", filename="x.html", content_type="text/html")
    assert record.served_type == OCTETS
    assert files.set_probe(record.id, {"format": "html"}).served_type == OCTETS
    assert files.set_probe(record.id, {"format": "png"}).served_type == "image/png"
    assert files.get(record.id).probe == {"format": "png"}


def test_links_are_recognised(files: FileStore):
    record = files.ingest_bytes(b"x", filename="my photo (1).png", content_type=None)
    link = files.uri(record, BASE)
    assert link == f"{BASE}/app/files/{record.id}/my_photo_1_.png"
    for form in (
        link,
        f"https://elsewhere{link.removeprefix('http://box:8000')}",
        f"/app/files/{record.id}/x",
        link + "?x=1",
    ):
        assert files.id_of(form) == record.id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "/app/files/short/x",
        f"/files/{'a' * 26}/x",
        f"/app/files/{'a' * 26}/x/y",
        "http://[bad",
        "/app/files/",
        f"see /app/files/{'a' * 26}/x",
    ],
)
def test_other_texts_are_no_links(files: FileStore, text: str):
    assert files.id_of(text) is None


def test_scratch_files_belong_to_a_task(files: FileStore, tmp_path: Path):
    mine, other = new_id(), new_id()
    path, back = tmp_path / "latents", tmp_path / "back"
    path.write_bytes(b"tensor")
    files.scratch_put(mine, "latents", path)
    path.write_bytes(b"newer")
    files.scratch_put(mine, "latents", path)
    assert files.scratch_get(mine, "latents", back)
    assert back.read_bytes() == b"newer"
    assert not files.scratch_get(other, "latents", back)
    files.scratch_clear(mine)
    files.scratch_clear(mine)
    assert not files.scratch_get(mine, "latents", back)
    assert back.read_bytes() == b"newer"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file() and "wanbox" not in path.name) == [
        "back",
        "latents",
    ]


@pytest.mark.parametrize(
    ("given", "cleaned", "safe"),
    [
        (None, "file", "file"),
        ("", "file", "file"),
        ("../../etc/passwd", "passwd", "passwd"),
        ("C:\\pictures\\cat.png", "cat.png", "cat.png"),
        ("猫.png", "猫.png", "png"),
        ('a"b\r\nc.png', 'a"bc.png', "a_bc.png"),
        ("..", "file", "file"),
        ("x" * 500 + ".mp4", "x" * 196 + ".mp4", "x" * 196 + ".mp4"),
    ],
)
def test_names_are_fit_to_show_and_to_send(given: str | None, cleaned: str, safe: str):
    assert clean_name(given) == cleaned
    assert safe_name(cleaned) == safe
