"""Small things with files that fetching and converting share. No torch."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wan_pipelines.errors import CheckpointError


def size_of(path: Path) -> int | None:
    """Bytes of a file, None without one."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def staging_folder(folder: Path) -> Path:
    """Where the files of a folder gather: beside it, on the same disk, under a name that no profile can have."""
    return folder.with_name(f".{folder.name}.part")


def nearest(folder: Path) -> Path:
    """The folder, or the closest one above it that exists."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())


def is_on_disk_of(path: Path, folder: Path) -> bool:
    """Whether a file can be linked into a folder."""
    return path.stat().st_dev == nearest(folder).stat().st_dev


def link(source: Path, target: Path) -> None:
    """A second name on the same disk, a copy across disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_room(folder: Path, needed: int) -> None:
    """Raises CheckpointError when the disk has not that many bytes free."""
    free = shutil.disk_usage(nearest(folder)).free
    if needed > free:
        raise CheckpointError(
            f"{nearest(folder)} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed for {folder.name}"
        )


@contextmanager
def locked(staging: Path) -> Iterator[None]:
    """Make a staging folder and keep other processes out of it. The lock goes with the process, however that ends."""
    staging.mkdir(parents=True, exist_ok=True)
    with (staging / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(f"{staging} is in use: another process is filling it") from error
        yield
