"""References to apps as callers write them: `[type/]namespace/name[@version][:function]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wan_server.errors import InvalidInput

TYPES: Final = frozenset({"knowledge", "skill", "app", "agent"})
MAX_LENGTH: Final = 300


@dataclass(frozen=True, slots=True)
class AppRef:
    """A parsed reference. Empty version: the latest. Empty function: the default one."""

    namespace: str
    name: str
    version: str = ""
    function: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def parse_ref(text: str) -> AppRef:
    """Read a reference. Raises InvalidInput when it is not one, or names something that is not an app."""
    if not 1 <= len(text) <= MAX_LENGTH or not text.isprintable():
        raise InvalidInput(f"app: must be namespace/name, of at most {MAX_LENGTH} characters")
    rest, function = _split_function(text)
    path, _, version = rest.rpartition("@") if "@" in rest else (rest, "", "")
    parts = path.split("/", 2)
    if len(parts) == 3 and parts[0] in TYPES:
        if parts[0] != "app":
            raise InvalidInput(f"app: must be an app, not a reference of type {parts[0]} (got {text})")
        parts = parts[1:]
    namespace, name = parts if len(parts) == 2 else ("", path)
    return AppRef(namespace, name, "" if version == "latest" else version, function)


def _split_function(text: str) -> tuple[str, str]:
    """The function is what follows the last colon, when that comes after the last `@`."""
    colon, at = text.rfind(":"), text.rfind("@")
    return (text[:colon], text[colon + 1 :]) if colon > at else (text, "")
