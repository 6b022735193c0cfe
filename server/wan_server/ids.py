"""Ids as the hosted service writes them: 26 characters of lower-case base32, 130 bits."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Final

#: digits and letters without i, l, o, u
ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH: Final = 26
ID_PATTERN: Final = f"[{ALPHABET}]{{{LENGTH}}}"


def new_id() -> str:
    """A random id that nobody can guess."""
    return _encode(secrets.randbits(5 * LENGTH))


def derived_id(*parts: str) -> str:
    """The same id for the same parts; different parts never meet in practice."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return _encode(int.from_bytes(digest.digest(), "big") >> (256 - 5 * LENGTH))


def is_id(text: str) -> bool:
    """Whether the text has the form of an id."""
    return re.fullmatch(ID_PATTERN, text) is not None


def short_id(full: str) -> str:
    """The first eight characters."""
    return full[:8]


def _encode(number: int) -> str:
    return "".join(ALPHABET[number >> (5 * place) & 31] for place in reversed(range(LENGTH)))
