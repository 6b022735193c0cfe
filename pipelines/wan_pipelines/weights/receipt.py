"""What a weights folder says of its own files: where they came from, their sizes and digests. No torch.

The receipt is written last, so a folder that has one was complete at that time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.disk import size_of

NAME = ".wanbox.json"
SHA256_LENGTH = 64
SHA1_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One file."""

    repository: str
    revision: str
    #: path in the repository
    path: str
    size: int
    #: sha256 of a large file, git blob hash of a small one
    digest: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The files that `wanbox weights get` put into a folder, by their path in it."""

    #: layout of the checkpoint; None when only additions to somebody else's checkpoint are listed
    layout: str | None = None
    files: dict[str, Entry] = field(default_factory=dict)

    def having(self, files: dict[str, Entry]) -> Receipt:
        """With these files besides."""
        return replace(self, files=self.files | files)

    def broken(self, folder: Path) -> list[str]:
        """Listed files that are missing or have another size."""
        return [name for name, entry in self.files.items() if size_of(folder / name) != entry.size]


def matches(path: Path, digest: str) -> bool:
    """Whether a file is the one with this digest (sha256, or git's hash of a blob). Reads all of it."""
    if len(digest) == SHA256_LENGTH:
        hasher = hashlib.sha256()
    elif len(digest) == SHA1_LENGTH:
        hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest() == digest


def read_receipt(folder: Path) -> Receipt | None:
    """The receipt of a folder, None without one. Raises CheckpointError when it cannot be read."""
    path = folder / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Receipt(data["layout"], {name: Entry(**entry) for name, entry in data["files"].items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Replace the receipt of a folder at once."""
    partial = folder / f"{NAME}.part"
    partial.write_text(json.dumps(asdict(receipt), indent=1), encoding="utf-8")
    partial.replace(folder / NAME)
