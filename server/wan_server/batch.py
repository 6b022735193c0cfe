"""Offline batches as data: inputs from a file, one manifest per job, and what is left to do. Runs nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from wan_server.errors import InvalidInput
from wan_server.media import ROLES

Json = dict[str, Any]

DEFAULT_APP: Final = "alibaba/wan-2-7-i2v"
_NAME: Final = re.compile(r"[\w][\w.-]{0,99}")
_NO_NAME: Final = re.compile(r"[^\w.-]+")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{64,}={0,2}")
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
HASH_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One input of a batch. Relative media paths are meant from the folder of the file it stands in."""

    name: str
    app: str
    input: Json
    folder: Path

    def local_media(self) -> dict[str, Path]:
        """Media role -> file, for media that are paths. Raises InvalidInput for a file that is not there."""
        found = {}
        for role in ROLES:
            value = self.input.get(role)
            if not isinstance(value, str) or not value or _URL.match(value):
                continue
            path = self.folder / Path(value).expanduser()
            if not _is_file(path):
                if _BASE64.fullmatch(value):
                    continue
                raise InvalidInput(f"input.{role}: there is no file {value[:100]}")
            found[role] = path
        return found

    def digest(self, model: str) -> str:
        """Changes when the model, the input or the bytes of a local file change."""
        content = {role: _hash(path) for role, path in self.local_media().items()}
        text = json.dumps([model, self.app, self.input | content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What became of a job; lies beside its video as `<name>.json`. Times in epoch seconds."""

    name: str
    status: Literal["queued", "completed", "failed", "cancelled"]
    digest: str
    app: str
    input: Json
    task_id: str | None = None
    #: file name of the video in the same folder
    video: str | None = None
    output_meta: Json | None = None
    error: str | None = None
    created_at: float | None = None
    completed_at: float | None = None

    def write(self, out: Path) -> Manifest:
        """Write or replace the file, whole or not at all."""
        target = out / f"{self.name}.json"
        partial = target.with_suffix(".json.part")
        partial.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")
        partial.replace(target)
        return self

    def changed(self, **values: Any) -> Manifest:
        return replace(self, **values)

    def is_done(self, out: Path) -> bool:
        """Whether there is nothing left to do."""
        return self.status == "completed" and self.video is not None and (out / self.video).is_file()


def read_manifest(out: Path, name: str) -> Manifest | None:
    """The manifest of an earlier run, None when there is none that can be read."""
    try:
        return Manifest(**json.loads((out / f"{name}.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read_jobs(path: Path) -> list[BatchJob]:
    """The jobs of `INPUT.json` (one) or `JOBS.jsonl` (one a line). Raises InvalidInput naming file and line.

    A job is an input as for POST /apps/run, or an object with `input` and, if wanted, `app` and `name`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read ({error})") from None
    stem = _NO_NAME.sub("-", path.stem).strip("-.")[:80] or "job"
    entries = _lines(text, stem) if path.suffix == ".jsonl" else [(stem, "", text)]
    jobs = [_job(entry, name, path, where) for name, where, entry in entries]
    seen: set[str] = set()
    for job in jobs:
        if job.name in seen:
            raise InvalidInput(f"{path}: two jobs have the name {job.name!r}")
        seen.add(job.name)
    if not jobs:
        raise InvalidInput(f"{path}: holds no job")
    return jobs


def _lines(text: str, stem: str) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{stem}-{number:04d}", f" line {number}", line


def _job(text: str, default_name: str, path: Path, where: str) -> BatchJob:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{path}{where}: is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise InvalidInput(f"{path}{where}: must be a JSON object")
    wrapped = isinstance(entry.get("input"), dict)
    name = entry.get("name", default_name) if wrapped else default_name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(f"{path}{where}: name: must be letters, digits, '.', '-' or '_' (got {name!r})")
    app = entry.get("app", DEFAULT_APP) if wrapped else DEFAULT_APP
    return BatchJob(name, app, entry["input"] if wrapped else entry, path.resolve().parent)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with characters that no name has
        return False


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
