"""Batches as data: what is read from the file, what a manifest remembers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wan_server.batch import DEFAULT_APP, Manifest, read_jobs, read_manifest
from wan_server.errors import InvalidInput


def write(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    return path


def test_a_json_file_is_one_job_named_after_it(tmp_path: Path) -> None:
    (job,) = read_jobs(write(tmp_path / "sea.json", {"prompt": "a sea"}))
    assert (job.name, job.app, job.input) == ("sea", DEFAULT_APP, {"prompt": "a sea"})


def test_lines_are_numbered_unless_they_have_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "jobs.jsonl", {"prompt": "a"}, {"name": "b", "input": {"prompt": "b"}})
    path.write_text(path.read_text() + "\n\n")
    assert [job.name for job in read_jobs(path)] == ["jobs-0001", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no job"),
        ("{", "line 1: is not JSON"),
        ("[]", "line 1: must be a JSON object"),
        ('{"name": "../x", "input": {}}', "line 1: name"),
        ('{"name": "a", "input": {}}\n{"name": "a", "input": {}}', "two jobs have the name 'a'"),
    ],
)
def test_what_is_wrong_with_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read_jobs(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.json"):
        read_jobs(tmp_path / "nothing.json")


def test_media_paths_are_meant_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    entry = {"first_frame": "a.png", "last_frame": "https://example.com/b.png", "driving_audio": "data:,x"}
    (job,) = read_jobs(write(tmp_path / "job.json", entry))
    assert job.local_media() == {"first_frame": tmp_path / "a.png"}


def test_an_absent_media_file_is_refused_by_field(tmp_path: Path) -> None:
    (job,) = read_jobs(write(tmp_path / "job.json", {"first_frame": "gone.png"}))
    with pytest.raises(InvalidInput, match=r"input\.first_frame: there is no file gone\.png"):
        job.local_media()


def test_the_digest_follows_input_and_bytes(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    (job,) = read_jobs(write(tmp_path / "job.json", {"first_frame": "a.png", "seed": 1}))
    assert job.digest("tiny") != job.digest("tiny-ti2v")
    (same,) = read_jobs(write(tmp_path / "other.json", {"seed": 1, "first_frame": "a.png"}))
    assert job.digest("tiny") == same.digest("tiny")
    (seeded,) = read_jobs(write(tmp_path / "job.json", {"first_frame": "a.png", "seed": 2}))
    assert job.digest("tiny") != seeded.digest("tiny")
    before = job.digest("tiny")
    image.write_bytes(b"two")
    assert job.digest("tiny") != before


def test_a_manifest_is_done_only_with_its_video(tmp_path: Path) -> None:
    manifest = Manifest("a", "completed", "d", DEFAULT_APP, {"prompt": "海"}, video="a.mp4").write(tmp_path)
    assert read_manifest(tmp_path, "a") == manifest
    assert not manifest.is_done(tmp_path)
    (tmp_path / "a.mp4").touch()
    assert manifest.is_done(tmp_path)
    assert not manifest.changed(status="failed").is_done(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"unknown": 1}'])
def test_an_unreadable_manifest_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_manifest(tmp_path, "a") is None


def test_inline_media_is_no_path(tmp_path: Path) -> None:
    (job,) = read_jobs(write(tmp_path / "job.json", {"first_frame": "QUJD" * 5000}))
    assert job.local_media() == {}


def test_a_text_too_long_for_a_name_is_an_absent_file(tmp_path: Path) -> None:
    (job,) = read_jobs(write(tmp_path / "job.json", {"first_frame": "a b" * 5000}))
    with pytest.raises(InvalidInput, match="there is no file a b"):
        job.local_media()


def test_a_file_name_that_is_no_job_name_is_made_one(tmp_path: Path) -> None:
    path = write(tmp_path / "my job (1).json", {"prompt": "a\u2028b"})
    path.write_text("\ufeff" + path.read_text())
    (job,) = read_jobs(path)
    assert (job.name, job.input["prompt"]) == ("my-job-1", "a\u2028b")
