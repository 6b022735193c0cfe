"""Weights from a hub into the weights folder: planned, then brought to a folder beside it, verified, moved in place.

`plan_download` writes nothing and says everything that a person wants to know first. No torch.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wan_pipelines.errors import CheckpointError
from wan_pipelines.profile import Profile
from wan_pipelines.weights.disk import check_room, is_on_disk_of, link, locked, nearest, size_of, staging_folder
from wan_pipelines.weights.hub import Hub, Listing, RemoteFile, Stopped
from wan_pipelines.weights.receipt import Entry, Receipt, matches, read_receipt, write_receipt
from wan_pipelines.weights.wanted import Layout, base_source, lora_sources

#: files at a time
THREADS = 4


@dataclass(frozen=True, slots=True)
class Missing:
    """A file that is to be brought."""

    file: RemoteFile
    #: the same file on this disk: in the hub's cache, or in another profile's folder
    found: Path | None
    #: bytes of an earlier try
    begun: int

    @property
    def bytes_to_load(self) -> int:
        """Bytes that come over the network."""
        return 0 if self.found else self.file.size - self.begun


@dataclass(frozen=True, slots=True)
class Download:
    """What `run_download` will do."""

    folder: Path
    listings: tuple[Listing, ...]
    missing: tuple[Missing, ...]
    #: of a new checkpoint; None when one is there and stays
    layout: Layout | None
    #: the checkpoint that is there was not fetched by wanbox
    is_foreign: bool

    @property
    def staging(self) -> Path:
        """Where the files gather until all are there."""
        return staging_folder(self.folder)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.layout is None and not self.missing

    @property
    def total(self) -> int:
        """Bytes of all wanted files."""
        return sum(file.size for listing in self.listings for file in listing.files)

    @property
    def bytes_to_load(self) -> int:
        """Bytes that come over the network."""
        return sum(item.bytes_to_load for item in self.missing)

    @property
    def bytes_to_write(self) -> int:
        """Bytes that the disk must have free. A file found on the same disk is linked, not copied."""
        return sum(item.bytes_to_load for item in self.missing if not item.found) + sum(
            item.file.size for item in self.missing if item.found and not is_on_disk_of(item.found, self.folder)
        )

    @property
    def bytes_free(self) -> int:
        """Free bytes where the folder will be."""
        return shutil.disk_usage(nearest(self.folder)).free


def plan_download(profile: Profile, layout: Layout | None, folder: Path, hub: Hub) -> Download:
    """What is missing in `folder` of the profile and its preset. Raises CheckpointError.

    A checkpoint that is there stays as it is: one that an earlier call brought is mended from the same commit, one
    from elsewhere is not touched. Low-rank additions are added to both.
    """
    base = base_source(profile, layout)
    folder = folder.resolve()
    there = read_receipt(folder)
    is_foreign = _is_filled(folder)
    if there is not None and there.layout:
        if layout and there.layout != layout:
            raise CheckpointError(f"{folder} holds the {there.layout} layout; move it away to get the {layout} one")
        base = base_source(profile, _layout(there.layout))
        if commit := _commit(there, base.repository):
            base, is_foreign = replace(base, revision=commit), False
    sources = [*([] if is_foreign else [base]), *lora_sources(profile)]
    listings = tuple(hub.list(source) for source in sources)
    fetched = read_receipt(staging_folder(folder)) or Receipt()
    known = _known_files(folder)
    missing = tuple(
        _missing(file, folder, known, hub)
        for listing in listings
        for file in listing.files
        if not _is_here(file, folder, there) and not _is_here(file, staging_folder(folder), fetched)
    )
    is_new = not is_foreign and there is None
    chosen = (layout or ("diffusers" if base.repository == profile.repository else "original")) if is_new else None
    return Download(folder, listings, missing, chosen, is_foreign)


def run_download(download: Download, hub: Hub, on_bytes: Callable[[int], None]) -> None:
    """Bring what is missing, verify it, and move it in place. Raises CheckpointError.

    `on_bytes` hears of bytes as they arrive, from several threads. Whatever stops it, what came so far is kept.
    """
    check_room(download.folder, download.bytes_to_write)
    with locked(download.staging):
        _bring_all(download, hub, on_bytes)
        _check_indexes(download)
        _place(download)


def _bring_all(download: Download, hub: Hub, on_bytes: Callable[[int], None]) -> None:
    stop = threading.Event()
    lock = threading.Lock()
    staging = download.staging

    def count(size: int) -> None:
        if stop.is_set():
            raise Stopped
        on_bytes(size)

    def bring(item: Missing) -> None:
        _bring(item, staging, hub, count)
        with lock:
            receipt = read_receipt(staging) or Receipt()
            write_receipt(staging, receipt.having({item.file.target: _entry(item.file)}))

    with ThreadPoolExecutor(THREADS, "weights") as pool:
        try:
            for done in as_completed([pool.submit(bring, item) for item in download.missing]):
                done.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _bring(item: Missing, staging: Path, hub: Hub, on_bytes: Callable[[int], None]) -> None:
    """One file to `staging`, verified."""
    file, target = item.file, staging / item.file.target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(file, staging)
    if item.found is not None:
        part.unlink(missing_ok=True)
        link(item.found, part)
        if _is_right(part, file):
            part.replace(target)
            return
        part.unlink()
        if hub.offline:
            raise CheckpointError(f"{item.found}: {_promise(file)}")
    if (size_of(part) or 0) > file.size:
        part.unlink()
    hub.fetch(file, part, on_bytes)
    if not _is_right(part, file):
        part.unlink()
        raise CheckpointError(f"{file.repository}/{file.path}: {_promise(file)}; what came was thrown away")
    part.replace(target)


def _is_right(path: Path, file: RemoteFile) -> bool:
    return size_of(path) == file.size and matches(path, file.digest)


def _promise(file: RemoteFile) -> str:
    return f"is not what the hub lists ({file.size} bytes, {file.digest[:12]}…)"


def _check_indexes(download: Download) -> None:
    """Every shard that an index names must be among the files."""
    names = {file.target for listing in download.listings for file in listing.files}
    for name in sorted(name for name in names if name.endswith(".index.json")):
        staged = download.staging / name
        path = staged if staged.is_file() else download.folder / name
        try:
            shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}: no index of shards ({error})") from error
        lost = sorted(shards - {Path(n).name for n in names if Path(n).parent == Path(name).parent})
        if lost:
            raise CheckpointError(f"{path} names {lost[0]}, which the repository does not have")


def _place(download: Download) -> None:
    """A new folder appears at once; into one that is there, files go one by one, each at once."""
    folder, staging = download.folder, download.staging
    files = {file.target: _entry(file) for listing in download.listings for file in listing.files}
    if download.layout is not None:
        _drop_others(staging, set(files))
        write_receipt(staging, Receipt(download.layout, files))
        staging.rename(folder)  # replaces an empty folder
        return
    for name in files:
        if (staging / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).replace(folder / name)
    write_receipt(folder, (read_receipt(folder) or Receipt()).having(files))
    shutil.rmtree(staging)


def _drop_others(staging: Path, names: set[str]) -> None:
    """Remove what earlier tries left: beginnings, files of an older commit, the lock."""
    for path in [path for path in staging.rglob("*") if path.is_file()]:
        if path.relative_to(staging).as_posix() not in names:
            path.unlink()


def _missing(file: RemoteFile, folder: Path, known: dict[str, Path], hub: Hub) -> Missing:
    found = hub.cached(file) or known.get(file.digest)
    begun = size_of(_part(file, staging_folder(folder))) or 0
    return Missing(file, found, begun if begun <= file.size else 0)


def _known_files(folder: Path) -> dict[str, Path]:
    """Large files of the other profiles by digest: text encoder and VAE are the same in many."""
    found = {}
    for other in folder.parent.glob("*/") if folder.parent.is_dir() else ():
        with suppress(CheckpointError):
            receipt = read_receipt(other) or Receipt()
            found |= {e.digest: other / name for name, e in receipt.files.items() if size_of(other / name) == e.size}
    return found


def _is_here(file: RemoteFile, folder: Path, receipt: Receipt | None) -> bool:
    entry = receipt.files.get(file.target) if receipt else None
    return entry is not None and entry.digest == file.digest and size_of(folder / file.target) == file.size


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _commit(receipt: Receipt, repository: str) -> str | None:
    """Commit that the folder's checkpoint is of; None when it is of another repository."""
    return next((e.revision for e in receipt.files.values() if e.repository == repository), None)


def _layout(name: str) -> Layout:
    return "original" if name == "original" else "diffusers"


def _entry(file: RemoteFile) -> Entry:
    return Entry(file.repository, file.revision, file.path, file.size, file.digest)


def _part(file: RemoteFile, staging: Path) -> Path:
    """The beginning of a file. The digest in its name keeps beginnings of different commits apart."""
    return staging / f"{file.target}.{file.digest[:12]}.part"
