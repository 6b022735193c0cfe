"""Answers of language models, kept by content: the same wish gives the same prompt, with one seed the same video."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

logger = logging.getLogger(__name__)

#: a few kilobytes each; the least recently used go first
MAX_ENTRIES: Final = 10_000
_ENDING: Final = ".txt"


@dataclass(frozen=True, slots=True)
class PromptCache:
    """A folder with one small text file per answer, which several workers may share."""

    folder: Path
    max_entries: int = MAX_ENTRIES

    def get(self, key: str) -> str | None:
        """The answer that was kept under this key."""
        path = self._path(key)
        try:
            text = path.read_text(encoding="utf-8")
            os.utime(path)
        except (OSError, UnicodeDecodeError):
            return None
        return text or None

    def put(self, key: str, text: str) -> None:
        """Keep an answer, whole or not at all. A disk that is full or read-only costs only the entry."""
        partial = self.folder / f"{uuid4().hex}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self._path(key))
            self._make_room()
        except OSError as error:
            logger.warning("an extended prompt is not kept: %s", error)
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_ENDING}"

    def _make_room(self) -> None:
        with os.scandir(self.folder) as entries:
            ages = [(entry.stat().st_mtime_ns, entry.path) for entry in entries if entry.name.endswith(_ENDING)]
        for _, path in sorted(ages)[: max(len(ages) - self.max_entries, 0)]:
            Path(path).unlink(missing_ok=True)
