"""API keys: random tokens, shown once, kept as hashes. Knows no HTTP."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, func, insert, select, update

from wan_server.errors import InvalidInput, NotFound
from wan_server.ids import new_id
from wan_server.tables import api_keys, create_all

TOKEN_PREFIX: Final = "inf_"
#: characters of a token that are kept readable
SHOWN: Final = 12
#: `last_used_at` is written at most this often
USED_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of a key. Times in epoch seconds."""

    id: str
    name: str
    prefix: str
    created_at: float
    last_used_at: float | None
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever sent a request: a key's id, or `local` on a loopback server without keys."""

    id: str


class KeyStore:
    """Create, list, revoke and check keys. Thread-safe."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.clock = clock
        create_all(engine)

    def create(self, name: str) -> tuple[str, KeyRecord]:
        """A new key: the token, which cannot be read again, and its record. Raises InvalidInput."""
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise InvalidInput("name: must have 1 to 100 printable characters")
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(new_id(), name, token[:SHOWN], self.clock(), None, None)
        with self.engine.begin() as connection:
            connection.execute(
                insert(api_keys).values(
                    id=record.id, name=name, prefix=record.prefix, sha256=_digest(token), created_at=record.created_at
                )
            )
        return token, record

    def list(self) -> list[KeyRecord]:
        """Every key, revoked ones too, oldest first."""
        query = select(*_PUBLIC).order_by(api_keys.c.created_at, api_keys.c.id)
        with self.engine.connect() as connection:
            return [KeyRecord(**row) for row in connection.execute(query).mappings()]

    def revoke(self, id_or_prefix: str) -> KeyRecord:
        """Refuse the key from now on. Raises NotFound unless exactly one key has this id or prefix."""
        found = [key for key in self.list() if key.prefix == id_or_prefix or key.id.startswith(id_or_prefix)]
        if len(found) != 1:
            raise NotFound(f"{len(found) or 'no'} keys have the id or prefix {id_or_prefix}")
        unrevoked = (api_keys.c.id == found[0].id) & api_keys.c.revoked_at.is_(None)
        with self.engine.begin() as connection:
            connection.execute(update(api_keys).where(unrevoked).values(revoked_at=self.clock()))
        return next(key for key in self.list() if key.id == found[0].id)

    def verify(self, token: str) -> Principal | None:
        """Who holds the token; None for unknown and revoked ones."""
        query = select(*_PUBLIC).where(api_keys.c.sha256 == _digest(token), api_keys.c.revoked_at.is_(None))
        with self.engine.connect() as connection:
            found = connection.execute(query).mappings().first()
        if found is None:
            return None
        if (found["last_used_at"] or 0) < self.clock() - USED_EVERY_S:
            self._touch(found["id"])
        return Principal(found["id"])

    def had_keys(self) -> bool:
        """Whether any key was ever made: a server that has been locked does not open by itself."""
        with self.engine.connect() as connection:
            return bool(connection.scalar(select(func.count()).select_from(api_keys)))

    def has_keys(self) -> bool:
        """Whether any key was ever made and not revoked."""
        query = select(func.count()).select_from(api_keys).where(api_keys.c.revoked_at.is_(None))
        with self.engine.connect() as connection:
            return bool(connection.scalar(query))

    def _touch(self, key_id: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=self.clock()))


_PUBLIC: Final = [column for column in api_keys.c if column.name != "sha256"]


def match_configured(keys: Sequence[str], token: str) -> Principal | None:
    """Who holds a token that the settings name. Takes the same time wherever they differ."""
    digests = [_digest(key) for key in keys]
    same = [hmac.compare_digest(digest, _digest(token)) for digest in digests]
    return Principal(digests[same.index(True)][:26]) if any(same) else None


def _digest(token: str) -> str:
    # tokens have 256 random bits, so a plain hash cannot be reversed by guessing
    return hashlib.sha256(token.encode()).hexdigest()
