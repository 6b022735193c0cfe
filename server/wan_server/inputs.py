"""Media as callers give it (link, URL, data URI, base64) turned into stored files or URLs for the worker.

Nothing is downloaded here: what lies elsewhere is the worker's to fetch.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from wan_server import media
from wan_server.errors import InvalidInput, NotFound
from wan_server.files import CONTENT_TYPES, OCTETS, FileRecord, FileStore
from wan_server.probe import Probe, probe_file
from wan_server.schema import NOT_A_FILE
from wan_server.sniff import sniff
from wan_server.urls import check_url, host_of, shorten

#: below this, text is taken for a mistake and not for base64, as the clients do
MIN_BASE64: Final = 16
_DATA_URI: Final = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),(.*)", re.DOTALL)
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where one media input lies: in our store, or behind a URL."""

    role: str
    #: as the task shows it
    uri: str
    record: FileRecord | None = None


def examine(files: FileStore, record: FileRecord) -> Probe:
    """What a stored file really is; looked at once and remembered."""
    if record.probe is not None:
        return Probe.from_json(record.probe)
    with files.local(record.id) as path:
        probe = probe_file(path)
    files.set_probe(record.id, probe.to_json())
    return probe


@dataclass(frozen=True, slots=True)
class MediaResolver:
    """Resolves the media of one request. `base_url` is how its sender reaches us."""

    files: FileStore
    base_url: str
    allow_private: bool

    def resolve(self, role: str, value: str) -> Resolved:
        """Raises InvalidInput naming the field and what is wrong."""
        file_id = self.files.id_of(value)
        if file_id is not None and (record := self._own(role, value, file_id)):
            return self._checked(role, record)
        if value.startswith(("http://", "https://")):
            check_url(value, f"input.{role}", allow_private=self.allow_private)
            return Resolved(role, value)
        return self._inline(role, decode_inline(role, value))

    def is_own_link(self, value: object) -> bool:
        """Whether a text is exactly a link to a file of ours."""
        file_id = self.files.id_of(value) if isinstance(value, str) else None
        return file_id is not None and (self._is_here(str(value)) or self._find(file_id) is not None)

    def _own(self, role: str, value: str, file_id: str) -> FileRecord | None:
        """Our record; None when the link may well be another server's."""
        record = self._find(file_id)
        if record is None and self._is_here(value):
            raise InvalidInput(f"input.{role}: there is no file {shorten(value, 100)} (any more)")
        if record is not None and not record.stored:
            raise InvalidInput(f"input.{role}: file {record.id} was never uploaded: PUT its bytes to upload_url first")
        return record

    def _find(self, file_id: str) -> FileRecord | None:
        try:
            return self.files.get(file_id)
        except NotFound:
            return None

    def _is_here(self, value: str) -> bool:
        return host_of(value) in ("", host_of(self.base_url))

    def _checked(self, role: str, record: FileRecord) -> Resolved:
        if problems := media.check(role, examine(self.files, record)):
            raise InvalidInput(f"input.{role}: {'; '.join(problems)}")
        return Resolved(role, self.files.uri(record, self.base_url), record)

    def _inline(self, role: str, data: bytes) -> Resolved:
        limit = media.LIMITS[role].max_size
        if len(data) > limit:
            got = f"{len(data) / media.MB:.1f} MB"
            raise InvalidInput(f"input.{role}: must be at most {limit // media.MB} MB (got {got})")
        magic = sniff(data[:64])
        name = f"{role}.{magic.format}" if magic else role
        content_type = CONTENT_TYPES.get(magic.format, OCTETS) if magic else OCTETS
        record = self.files.ingest_bytes(data, filename=name, content_type=content_type)
        try:
            return self._checked(role, record)
        except InvalidInput:
            self.files.delete(record.id)
            raise


def decode_inline(role: str, value: str) -> bytes:
    """The bytes of a data URI or of base64 text. Raises InvalidInput."""
    if value.startswith("data:"):
        return _decode_data_uri(role, value)
    if len(value) >= MIN_BASE64 and not _URL.match(value) and (data := _decode_base64(value)) is not None:
        return data
    raise InvalidInput(f"input.{role}: {NOT_A_FILE} (got {shorten(value)})")


def _decode_data_uri(role: str, value: str) -> bytes:
    found = _DATA_URI.fullmatch(value)
    if found is None:
        raise InvalidInput(f"input.{role}: is not a complete data URI (got {shorten(value)})")
    if not found[2].lower().endswith(";base64"):
        return unquote_to_bytes(found[3])
    data = _decode_base64(found[3])
    if data is None:
        raise InvalidInput(f"input.{role}: does not hold valid base64")
    return data


def _decode_base64(text: str) -> bytes | None:
    """Bytes of standard or URL-safe base64, with or without padding and line breaks; None when it is neither."""
    text = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
