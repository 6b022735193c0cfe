"""Errors: one tree, each with a status, a code and a sentence."""

from __future__ import annotations

import pytest

from wan_server import errors
from wan_server.errors import InvalidInput, NotFound, TooManyRequests, Unauthorized, WanboxError

CLASSES = [
    value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, WanboxError) and not name.startswith("_")
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_tree_in_the_docstring_is_the_tree(kind: type[WanboxError]):
    line = next(line for line in (errors.__doc__ or "").splitlines() if f"{kind.__name__} " in line)
    assert line.split()[-2:] == [str(kind.status), kind.code]


def test_the_message_defaults_to_the_docstring():
    assert str(NotFound()) == NotFound.__doc__
    assert str(InvalidInput("input.seed: must be at least 0")) == "input.seed: must be at least 0"


def test_no_error_is_a_412_which_clients_take_for_missing_secrets():
    assert 412 not in {kind.status for kind in CLASSES}


def test_errors_carry_their_headers():
    assert TooManyRequests(retry_after_s=9).headers == {"Retry-After": "9"}
    assert "Bearer" in Unauthorized().headers["WWW-Authenticate"]
    assert NotFound().headers == {}
