"""API keys: shown once, kept as hashes, revocable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from wan_server.errors import InvalidInput, NotFound
from wan_server.keys import USED_EVERY_S, KeyStore, Principal, match_configured
from wan_server.tables import api_keys, make_engine


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path}/wanbox.db")
    yield engine
    engine.dispose()


def test_a_token_opens_until_it_is_revoked(engine: Engine):
    keys = KeyStore(engine)
    token, record = keys.create("laptop")
    assert token.startswith(record.prefix)
    assert token.startswith("inf_")
    assert keys.verify(token) == Principal(record.id)
    assert keys.has_keys()
    assert keys.revoke(record.prefix).revoked_at is not None
    assert keys.verify(token) is None
    assert not keys.has_keys()
    assert keys.verify("inf_unknown") is None


def test_the_token_is_not_in_the_database(engine: Engine, tmp_path: Path):
    token, _ = KeyStore(engine).create("laptop")
    with engine.connect() as connection:
        assert token not in str(connection.execute(select(api_keys)).all())
    engine.dispose()
    assert token.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_keys_are_listed_in_order_with_their_last_use(engine: Engine):
    clock = Clock()
    keys = KeyStore(engine, clock)
    token, _ = keys.create("one")
    clock.now += 5
    keys.create("two")
    assert [(key.name, key.created_at, key.last_used_at) for key in keys.list()] == [
        ("one", 1000.0, None),
        ("two", 1005.0, None),
    ]
    keys.verify(token)
    clock.now += USED_EVERY_S / 2
    keys.verify(token)
    assert keys.list()[0].last_used_at == 1005.0
    clock.now += USED_EVERY_S
    keys.verify(token)
    assert keys.list()[0].last_used_at == clock.now


def test_revoking_needs_exactly_one_key(engine: Engine):
    keys = KeyStore(engine)
    _, record = keys.create("laptop")
    with pytest.raises(NotFound, match="no keys have"):
        keys.revoke("inf_")
    first = keys.revoke(record.id).revoked_at
    assert keys.revoke(record.id).revoked_at == first


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb"])
def test_a_name_can_be_printed(engine: Engine, name: str):
    with pytest.raises(InvalidInput, match="name: must have"):
        KeyStore(engine).create(name)


def test_configured_keys_are_told_apart_without_being_named():
    one, two = match_configured(("one", "two"), "one"), match_configured(("one", "two"), "two")
    assert one is not None
    assert two is not None
    assert one != two
    assert "one" not in one.id
    assert match_configured(("one", "two"), "three") is None
    assert match_configured((), "") is None
