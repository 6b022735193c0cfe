"""Who may do what: bearer keys for the API, signatures for uploads. Downloads need neither, their names are secret."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wan_server.errors import Forbidden, Unauthorized
from wan_server.keys import KeyStore, Principal, match_configured
from wan_server.settings import Settings, SettingsError

LOCAL: Final = Principal("local")


def require_keys_unless_loopback(settings: Settings, keys: KeyStore) -> None:
    """Refuse to serve the network without any key. Raises SettingsError."""
    if settings.is_loopback or settings.api_keys or keys.has_keys():
        return
    raise SettingsError(
        f"host {settings.host} can be reached from other machines, so API keys are needed: "
        "make one with `wanbox keys create NAME`, or set WANBOX_API_KEYS"
    )


def authenticate(settings: Settings, keys: KeyStore, authorization: str | None) -> Principal:
    """Who sent this `Authorization` header. Raises Unauthorized.

    A loopback server that never had a key takes everybody for the developer at its keyboard.
    """
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else ""
    if token and (principal := match_configured(settings.api_keys, token) or keys.verify(token)):
        return principal
    if settings.is_loopback and not settings.api_keys and not keys.had_keys():
        return LOCAL
    raise Unauthorized("the API key is unknown or revoked" if token else None)


@dataclass(frozen=True, slots=True)
class UploadSigner:
    """Signs upload URLs: the client sends no key with its PUT."""

    secret: bytes
    ttl_s: int
    clock: Callable[[], float] = time.time

    def query(self, file_id: str) -> str:
        """The query string that allows one file to be uploaded for a while."""
        expires = int(self.clock()) + self.ttl_s
        return f"expires={expires}&signature={self._sign(file_id, expires)}"

    def check(self, file_id: str, expires: int, signature: str) -> None:
        """Raises Unauthorized for a wrong signature and Forbidden for an old one."""
        if not hmac.compare_digest(signature.encode(), self._sign(file_id, expires).encode()):
            raise Unauthorized("signature: does not belong to this upload URL")
        if expires < self.clock():
            raise Forbidden("expires: this upload URL is too old; ask POST /files for a new one")

    def _sign(self, file_id: str, expires: int) -> str:
        return hmac.new(self.secret, f"PUT {file_id} {expires}".encode(), hashlib.sha256).hexdigest()
