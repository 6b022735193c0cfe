"""A Hugging Face hub or a mirror of it: what a repository holds, and its files, resumed and verified. No torch.

huggingface_hub speaks to the server. Its own download starts a file anew in each process; here the beginning of a
file is kept, so that an interrupted one goes on. Small files are known by their git hash, large ones by sha256.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of the transport, which differs between versions of the hub)
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.receipt import SHA1_LENGTH, SHA256_LENGTH
from wan_pipelines.weights.wanted import Source

#: tries without a byte in between, before a broken connection is an error
TRIES = 5


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository."""

    repository: str
    #: commit
    revision: str
    #: path in the repository
    path: str
    #: path in the profile's folder
    target: str
    size: int
    #: sha256 of a large file, git blob hash of a small one, empty when the offline cache does not tell
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository has of what is wanted."""

    repository: str
    #: commit
    revision: str
    #: as its page says, None without a network
    licence: str | None
    files: tuple[RemoteFile, ...]


class Stopped(Exception):
    """The download was told to stop."""


class PartFile(io.BufferedWriter):
    """Appends to a file and tells how many bytes came; `on_bytes` may raise to stop."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "r+" if path.exists() else "w"))
        self.seek(0, io.SEEK_END)
        self.on_bytes = on_bytes

    def write(self, buffer: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        written = super().write(buffer)
        self.on_bytes(written)
        return written


@dataclass(frozen=True, slots=True)
class Hub:
    """Where to ask. What is left out comes from HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, as everywhere."""

    endpoint: str = constants.ENDPOINT
    cache: Path = Path(constants.HF_HUB_CACHE)
    offline: bool = constants.HF_HUB_OFFLINE
    #: seconds before the first new try, doubled each time
    patience_s: float = 1.0

    def list(self, source: Source) -> Listing:
        """The wanted files, without fetching any. Raises CheckpointError, also when one is not there."""
        with self._explained(source.repository):
            listing = self._cached_listing(source) if self.offline else self._remote_listing(source)
        for want in source.wants:
            if not any(fnmatchcase(file.path, pattern) for pattern in want for file in listing.files):
                where = "the offline cache" if self.offline else self.endpoint
                raise CheckpointError(f"{source.repository} at {where} has no {' or '.join(want)}")
        return listing

    def cached(self, file: RemoteFile) -> Path | None:
        """The file in the cache that other tools share (HF_HOME), if it is there."""
        found = try_to_load_from_cache(file.repository, file.path, cache_dir=self.cache, revision=file.revision)
        return Path(found).resolve() if isinstance(found, str) else None

    def fetch(self, file: RemoteFile, part: Path, on_bytes: Callable[[int], None]) -> None:
        """Bring a file to `part`, after the bytes that are there already. The content is not verified here.

        Raises CheckpointError, and what `on_bytes` raises; the bytes that came so far stay.
        """
        url = hf_hub_url(file.repository, file.path, revision=file.revision, endpoint=self.endpoint)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        failures = 0
        with self._explained(file.repository), PartFile(part, on_bytes) as sink:
            while True:
                start = sink.tell()
                try:
                    http_get(url, sink, resume_size=start, headers=headers, expected_size=file.size)  # pyright: ignore[reportArgumentType]
                    return
                except HTTPError as error:
                    failures = 1 if sink.tell() > start else failures + 1
                    if isinstance(error, HfHubHTTPError) or failures == TRIES:
                        raise
                    time.sleep(self.patience_s * 2 ** (failures - 1))

    def _remote_listing(self, source: Source) -> Listing:
        api = HfApi(endpoint=self.endpoint)
        info = api.model_info(source.repository, revision=source.revision)
        commit = info.sha or source.revision
        tree = api.list_repo_tree(source.repository, recursive=True, revision=commit)
        found = {
            item.path: (item.size, item.lfs.sha256 if item.lfs else item.blob_id)
            for item in tree
            if isinstance(item, RepoFile)
        }
        return Listing(source.repository, commit, _licence(info.card_data), _wanted(source, commit, found))

    def _cached_listing(self, source: Source) -> Listing:
        folder = Path(
            snapshot_download(
                source.repository,
                revision=source.revision,
                cache_dir=self.cache,
                local_files_only=True,
                allow_patterns=[pattern for want in source.wants for pattern in want],
            )
        )
        paths = [path for path in folder.rglob("*") if path.is_file()]
        found = {path.relative_to(folder).as_posix(): (path.stat().st_size, _blob_name(path)) for path in paths}
        return Listing(source.repository, folder.name, None, _wanted(source, folder.name, found))

    @contextmanager
    def _explained(self, repository: str) -> Iterator[None]:
        """Every way in which a hub says no, as one line."""
        page = f"{self.endpoint}/{repository}"
        try:
            yield
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise CheckpointError(f"{repository} is not in the offline cache {self.cache}") from error
        except GatedRepoError as error:
            raise CheckpointError(
                f"{repository} is gated: accept its terms at {page}, then set HF_TOKEN or run `hf auth login`"
            ) from error
        except RepositoryNotFoundError as error:
            raise CheckpointError(f"{page} does not exist, or needs a token in HF_TOKEN") from error
        except RevisionNotFoundError as error:
            raise CheckpointError(f"{page} has no such revision any more") from error
        except HfHubHTTPError as error:
            raise CheckpointError(f"{page}: the hub answered {error.response.status_code}") from error
        except HTTPError as error:
            raise CheckpointError(f"{self.endpoint} cannot be reached: {_one_line(error)}") from error
        except (OSError, ValueError) as error:
            where = f"{repository} is not complete in the offline cache {self.cache}" if self.offline else page
            raise CheckpointError(f"{where}: {_one_line(error)}") from error


def _wanted(source: Source, commit: str, found: dict[str, tuple[int, str]]) -> tuple[RemoteFile, ...]:
    """The files that a source names. A path that would leave the folder is refused."""
    chosen = {path for path in found for extra in source.extras if fnmatchcase(path, extra)}
    for want in source.wants:
        hits = ([path for path in found if fnmatchcase(path, pattern)] for pattern in want)
        chosen |= set(next((paths for paths in hits if paths), []))
    for path in chosen:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
            raise CheckpointError(f"{source.repository} names a file outside its folder: {path}")
    return tuple(
        RemoteFile(source.repository, commit, path, _target(source, path), *found[path]) for path in sorted(chosen)
    )


def _target(source: Source, path: str) -> str:
    return path if source.into is None else f"{source.into}/{PurePosixPath(path).name}"


def _licence(card: object) -> str | None:
    """The licence of a repository's page, by its own name where it has one."""
    name = getattr(card, "license_name", None) or getattr(card, "license", None)
    return ", ".join(name) if isinstance(name, list) else name


def _blob_name(path: Path) -> str:
    """The cache names its blobs by digest; a file that is no link has none."""
    name = path.resolve().name
    is_digest = len(name) in (SHA1_LENGTH, SHA256_LENGTH) and set(name) <= set("0123456789abcdef")
    return name if is_digest else ""


def _one_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
