"""References to apps, read as the hosted service reads them."""

from __future__ import annotations

import pytest
from inferencesh.ref import Ref

from wan_server.appref import AppRef, parse_ref
from wan_server.errors import InvalidInput

APP = "alibaba/wan-2-7-i2v"


@pytest.mark.parametrize(
    ("text", "version", "function"),
    [
        (APP, "", ""),
        (f"{APP}@abc1", "abc1", ""),
        (f"{APP}@abc1:run", "abc1", "run"),
        (f"{APP}:run", "", "run"),
        (f"{APP}@latest", "", ""),
        (f"{APP}@latest:run", "", "run"),
        (f"app/{APP}", "", ""),
        (f"app/{APP}@abc1:run", "abc1", "run"),
    ],
)
def test_the_grammar(text: str, version: str, function: str):
    assert parse_ref(text) == AppRef("alibaba", "wan-2-7-i2v", version, function)


@pytest.mark.parametrize(
    "text", ["x", "a/b/c", "app/a/b/c", "a/b@1@2", "a/b:c@d", "a:b/c", "a/b@", "a/b:", "@", ":", "/", "//", "a/", "/b"]
)
def test_odd_references_are_read_as_the_official_client_reads_them(text: str):
    theirs, ours = Ref.parse(text), parse_ref(text)
    assert (ours.full_name, ours.version, ours.function) == (theirs.full_name(), theirs.version_id, theirs.function)


@pytest.mark.parametrize("text", ["", "skill/a/b", "agent/a/b@1", "a/b\n", "x" * 301])
def test_what_is_no_app_is_refused(text: str):
    with pytest.raises(InvalidInput, match=r"^app: must be"):
        parse_ref(text)
