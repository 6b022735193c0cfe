"""Bytes named by their SHA-256, and scratch files named by task, on any file system fsspec knows.

Knows no file records: which blob belongs to whom is `files.py`'s business.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from wan_server.errors import TooLarge
from wan_server.ids import new_id

CHUNK: Final = 1 << 20


class Spool:
    """A temporary file that hashes and counts what is written to it."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.size = 0
        self.digest = hashlib.sha256()
        self.file: IO[bytes] = path.open("wb")

    @property
    def sha256(self) -> str:
        return self.digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append. Raises TooLarge beyond the limit."""
        self.size += len(chunk)
        if self.size > self.limit:
            raise TooLarge(f"file: must be at most {self.limit} bytes")
        self.digest.update(chunk)
        self.file.write(chunk)

    def copy_from(self, source: Path) -> None:
        """Append a whole local file."""
        with source.open("rb") as file:
            while chunk := file.read(CHUNK):
                self.write(chunk)


class Blobs:
    """The store behind a URL such as `file:///srv/wanbox/files` or `s3://bucket/wanbox`."""

    def __init__(self, url: str) -> None:
        self.fs, root = url_to_fs(url)
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    @contextmanager
    def spool(self, limit: int) -> Iterator[Spool]:
        """A temporary file, gone afterwards; beside the blobs when they are local, so that it can be moved."""
        folder = Path(self.root, "tmp") if self.is_local else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        spool = Spool(folder / f"wanbox-{new_id()}", limit)
        try:
            with spool.file:
                yield spool
        finally:
            spool.path.unlink(missing_ok=True)

    def adopt(self, spool: Spool) -> None:
        """Keep the spooled bytes under their hash; readers see all of them or none."""
        spool.file.flush()
        path = self.path(spool.sha256)
        if not self.exists(spool.sha256):
            self._place(spool.path, path, move=True)

    def exists(self, sha256: str) -> bool:
        return self.fs.exists(self.path(sha256))

    def delete(self, sha256: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(sha256))

    def read(self, sha256: str, start: int, length: int) -> Iterator[bytes]:
        """`length` bytes from `start`, in chunks. Raises FileNotFoundError at the first chunk."""
        with self.fs.open(self.path(sha256), "rb") as file:
            file.seek(start)
            while length > 0 and (chunk := file.read(min(CHUNK, length))):
                length -= len(chunk)
                yield chunk

    @contextmanager
    def local(self, sha256: str) -> Iterator[Path]:
        """A local path to read the blob from: the blob itself, or a copy that goes away."""
        if self.is_local:
            yield Path(self.path(sha256))
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, sha256)
            self.fs.get_file(self.path(sha256), str(copy))
            yield copy

    def scratch_put(self, task_id: str, name: str, path: Path) -> None:
        """Keep an intermediate file of a task."""
        self._place(path, self._scratch(task_id, name), move=False)

    def scratch_get(self, task_id: str, name: str, path: Path) -> bool:
        """Copy an intermediate file of a task to `path`; False when there is none."""
        part = path.with_name(f"{path.name}.{new_id()}")
        try:
            self.fs.get_file(self._scratch(task_id, name), str(part))
        except FileNotFoundError:
            part.unlink(missing_ok=True)
            return False
        part.replace(path)
        return True

    def scratch_clear(self, task_id: str) -> None:
        """Drop every intermediate file of a task."""
        with suppress(FileNotFoundError):
            self.fs.rm(f"{self.root}/scratch/{task_id}", recursive=True)

    def path(self, sha256: str) -> str:
        """Where the blob lies."""
        return f"{self.root}/blobs/{sha256[:2]}/{sha256}"

    def _scratch(self, task_id: str, name: str) -> str:
        return f"{self.root}/scratch/{task_id}/{name}"

    def _place(self, source: Path, target: str, *, move: bool) -> None:
        if not self.is_local:  # object stores show an object only when it is whole
            self.fs.put_file(str(source), target)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{target}.{new_id()}")
        try:
            (os.replace if move else shutil.copyfile)(source, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
