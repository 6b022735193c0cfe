"""Who may come in: keys, loopback without keys, signed uploads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from queue_fixtures import make_settings
from wan_server.auth import LOCAL, UploadSigner, authenticate, require_keys_unless_loopback
from wan_server.errors import Forbidden, Unauthorized
from wan_server.keys import KeyStore
from wan_server.settings import SettingsError
from wan_server.tables import make_engine


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyStore]:
    engine = make_engine(f"sqlite:///{tmp_path}/wanbox.db")
    yield KeyStore(engine)
    engine.dispose()


@pytest.mark.parametrize("header", [None, "", "Bearer anything", "Basic x", "Bearer", "nonsense"])
def test_loopback_without_keys_takes_everybody(tmp_path: Path, keys: KeyStore, header: str | None):
    assert authenticate(make_settings(tmp_path), keys, header) == LOCAL


@pytest.mark.parametrize("header", [None, "", "Bearer wrong", "Basic right", "Bearer ", "right"])
def test_with_keys_loopback_needs_one_too(tmp_path: Path, keys: KeyStore, header: str | None):
    settings = make_settings(tmp_path, api_keys=("right",))
    with pytest.raises(Unauthorized):
        authenticate(settings, keys, header)
    assert authenticate(settings, keys, "bearer  right") != LOCAL


def test_a_made_key_closes_loopback(tmp_path: Path, keys: KeyStore):
    settings = make_settings(tmp_path)
    token, record = keys.create("laptop")
    assert authenticate(settings, keys, f"Bearer {token}").id == record.id
    with pytest.raises(Unauthorized):
        authenticate(settings, keys, None)


def test_a_locked_server_does_not_open_with_its_last_key(tmp_path: Path, keys: KeyStore):
    token, record = keys.create("laptop")
    keys.revoke(record.id[:8])
    for header in (None, f"Bearer {token}"):
        with pytest.raises(Unauthorized):
            authenticate(make_settings(tmp_path), keys, header)


def test_the_network_never_gets_in_without_keys(tmp_path: Path, keys: KeyStore):
    settings = make_settings(tmp_path, host="0.0.0.0")
    with pytest.raises(Unauthorized):
        authenticate(settings, keys, None)
    with pytest.raises(SettingsError, match="wanbox keys create"):
        require_keys_unless_loopback(settings, keys)
    keys.create("laptop")
    require_keys_unless_loopback(settings, keys)


def test_the_network_is_served_with_configured_keys_and_loopback_always(tmp_path: Path, keys: KeyStore):
    require_keys_unless_loopback(make_settings(tmp_path, host="0.0.0.0", api_keys=("a",)), keys)
    require_keys_unless_loopback(make_settings(tmp_path, host="::1"), keys)


def test_an_upload_signature_is_for_one_file_and_one_time():
    signer = UploadSigner(b"secret", 60, clock=lambda: 1000.0)
    pairs = dict(pair.split("=") for pair in signer.query("file-a").split("&"))
    expires, signature = int(pairs["expires"]), pairs["signature"]
    assert expires == 1060
    signer.check("file-a", expires, signature)
    for file_id, until in (("file-b", expires), ("file-a", expires + 1)):
        with pytest.raises(Unauthorized, match="signature"):
            signer.check(file_id, until, signature)
    with pytest.raises(Unauthorized):
        UploadSigner(b"other", 60, clock=lambda: 1000.0).check("file-a", expires, signature)
    with pytest.raises(Forbidden, match="too old"):
        UploadSigner(b"secret", 60, clock=lambda: 1061.0).check("file-a", expires, signature)
