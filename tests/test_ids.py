"""Ids: 26 characters of base32, random or derived."""

from __future__ import annotations

import pytest

from wan_server.ids import LENGTH, derived_id, is_id, new_id, short_id


def test_new_ids_have_the_hosted_form_and_differ():
    made = {new_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(is_id(one) and len(one) == LENGTH for one in made)


def test_derived_ids_depend_on_every_part_and_its_bounds():
    assert derived_id("a", "bc") == derived_id("a", "bc")
    assert (
        len({derived_id(*parts) for parts in (("a", "bc"), ("ab", "c"), ("abc",), ("abc", ""), ("a", "b", "c"))}) == 5
    )
    assert is_id(derived_id("x"))


def test_every_character_varies():
    columns = zip(*(new_id() for _ in range(400)), strict=True)
    assert all(len(set(column)) > 16 for column in columns)


@pytest.mark.parametrize(
    "text", ["", "x", "2khet8d1p6z26krbtvn9d7rkt", "2KHET8D1P6Z26KRBTVN9D7RKTH", "i" * 26, "0" * 26 + "\n"]
)
def test_other_texts_are_no_ids(text: str):
    assert not is_id(text)


def test_the_short_id_is_its_beginning():
    assert is_id("2khet8d1p6z26krbtvn9d7rkth")
    assert short_id("2khet8d1p6z26krbtvn9d7rkth") == "2khet8d1"
