"""Which of several models a request goes to, and what is said when none can do it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wan_pipelines.plan import PlanRequest
from wan_pipelines.profile import Profile, load_profile, load_served
from wan_server.choice import abilities, choose, explain, refusal, wish_of
from wan_server.errors import InvalidInput
from wan_server.media import COMBINATIONS
from wan_server.schema import GenerateInput
from wan_server.settings import find_config_dir

CONFIGS = find_config_dir()
TINY = load_profile("tiny", CONFIGS)
CHAINED = load_profile("wan2.2-i2v-a14b", CONFIGS)
#: as models that make a video in one go
IN_ONE_GO: dict[str, Any] = {"chaining": None, "native_frames": None, "max_frames": 121}
A14B = replace(CHAINED, **IN_ONE_GO)
FAST = replace(load_served("wan2.2-i2v-a14b:fast", CONFIGS), **IN_ONE_GO)
SMALL = replace(load_profile("wan2.2-ti2v-5b", CONFIGS), **IN_ONE_GO)
T2V = load_profile("wan2.2-t2v-a14b", CONFIGS)
FLF2V = load_profile("wan2.1-flf2v-14b-720p", CONFIGS)
VACE = load_profile("wan2.1-vace-14b", CONFIGS)
S2V = load_profile("wan2.2-s2v-14b", CONFIGS)


def wish(*media: str, seconds: int = 4, **changes: Any) -> PlanRequest:
    return PlanRequest("a sea", None, "720P", 1.0, seconds, seed=0, media=media, **changes)


def taken(profiles: list[Profile], *media: str, **changes: Any) -> str:
    return choose(profiles, wish(*media, **changes)).profile.served_as


def refused(profiles: list[Profile], *media: str, **changes: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        choose(profiles, wish(*media, **changes))
    return str(caught.value)


@pytest.mark.parametrize(
    ("profiles", "media", "seconds", "model"),
    [
        ([SMALL, A14B], ("first_frame",), 5, "wan2.2-ti2v-5b"),
        ([A14B, SMALL], ("first_frame",), 5, "wan2.2-i2v-a14b"),
        ([FAST, A14B], ("first_frame",), 5, "wan2.2-i2v-a14b:fast"),
        ([SMALL, A14B], ("first_frame",), 7, "wan2.2-i2v-a14b"),  # longer than the first one can
        ([SMALL, A14B, TINY], ("first_frame",), 15, "tiny"),
        ([SMALL, A14B], ("first_frame", "last_frame"), 5, "wan2.2-i2v-a14b"),
        ([T2V, SMALL], ("first_frame",), 5, "wan2.2-ti2v-5b"),
        ([FLF2V, A14B], ("first_frame",), 5, "wan2.2-i2v-a14b"),  # the first one needs a last frame
        ([FLF2V, A14B], ("first_frame", "last_frame"), 5, "wan2.1-flf2v-14b-720p"),
    ],
)
def test_the_first_that_can_do_all_of_it_is_taken(profiles, media, seconds, model):
    assert taken(profiles, *media, seconds=seconds) == model


def test_text_alone_goes_to_a_model_for_text():
    assert taken([SMALL, VACE, T2V]) == "wan2.2-t2v-a14b"
    assert taken([SMALL, VACE]) == "wan2.2-ti2v-5b"
    assert taken([SMALL, T2V], "first_frame") == "wan2.2-ti2v-5b"


def test_sound_goes_to_a_model_that_hears_it():
    assert taken([A14B, S2V], "first_frame", "driving_audio") == "wan2.2-s2v-14b"
    assert taken([A14B, S2V], "first_frame") == "wan2.2-i2v-a14b"
    assert taken([TINY, S2V], "first_frame", "driving_audio", seconds=15) == "wan2.2-s2v-14b"
    assert taken([A14B, S2V], "first_frame", "last_frame", "driving_audio") == "wan2.2-s2v-14b"
    assert taken([A14B, S2V], "first_frame", "last_frame") == "wan2.2-i2v-a14b"
    assert taken([A14B, SMALL], "first_frame", "driving_audio") == "wan2.2-i2v-a14b"


def test_a_last_frame_alone_goes_where_it_can():
    assert taken([A14B, VACE], "last_frame") == "wan2.1-vace-14b"


def test_the_length_of_a_clip_decides_when_it_is_known():
    profiles = [A14B, TINY]
    assert taken(profiles, "first_clip", seconds=11, clip_seconds=5.0) == "wan2.2-i2v-a14b"
    assert taken(profiles, "first_clip", seconds=11, clip_seconds=3.0) == "tiny"


def test_a_clip_of_unknown_length_goes_to_a_model_for_every_length():
    assert taken([A14B, TINY], "first_clip", seconds=8) == "wan2.2-i2v-a14b"
    assert taken([A14B, TINY], "first_clip", seconds=11) == "tiny"
    assert taken([A14B], "first_clip", seconds=11) == "wan2.2-i2v-a14b"  # may turn out to be possible
    assert taken([A14B, TINY], "first_clip", seconds=2) == "wan2.2-i2v-a14b"  # and so may this


def test_models_that_come_first_are_passed_over_with_a_reason():
    choice = choose([T2V, SMALL, A14B, S2V, TINY], wish("first_frame", "driving_audio", seconds=4))
    assert choice.profile is S2V
    assert list(choice.passed_over) == ["wan2.2-t2v-a14b", "wan2.2-ti2v-5b", "wan2.2-i2v-a14b"]
    assert "does not take it" in choice.passed_over["wan2.2-t2v-a14b"]
    assert choice.passed_over["wan2.2-i2v-a14b"] == ("input.driving_audio: model wan2.2-i2v-a14b does not listen to it")
    assert choose([A14B], wish("first_frame")).passed_over == {}


def test_a_model_that_would_suit_better_is_passed_over_with_a_reason():
    unsteered = replace(S2V, inputs=("first_frame", "driving_audio"))
    choice = choose([A14B, unsteered, TINY], wish("first_frame", "last_frame", "driving_audio", seconds=7))
    assert choice.profile is A14B
    why = "input.last_frame: model wan2.2-s2v-14b does not take it (it takes first_frame, driving_audio)"
    assert choice.passed_over == {"wan2.2-s2v-14b": why}


def test_one_model_refuses_in_its_own_words():
    assert refused([SMALL], "first_frame", seconds=6) == (
        "input.duration: must be between 1 and 5 with model wan2.2-ti2v-5b (got 6)"
    )


def test_several_models_refuse_each_with_field_and_limit():
    assert refused([SMALL, A14B], "first_frame", seconds=9) == (
        "input.duration: no model of this server can do this. "
        "wan2.2-ti2v-5b: must be between 1 and 5 with model wan2.2-ti2v-5b (got 9); "
        "wan2.2-i2v-a14b: must be between 1 and 7 with model wan2.2-i2v-a14b (got 9)"
    )


def test_reasons_of_different_fields_keep_them():
    detail = refused([SMALL, A14B], "first_frame", "last_frame", seconds=9)
    assert detail.startswith("input: no model of this server can do this. wan2.2-ti2v-5b: input.last_frame: ")
    assert "; wan2.2-i2v-a14b: input.duration: must be between 1 and 7 " in detail


def test_a_reason_that_all_share_is_said_once():
    assert explain({"a": "input.resolution: x", "b": "input.resolution: x"}) == "input.resolution: x"
    detail = refused([A14B, TINY], "first_clip", seconds=3, clip_seconds=3.0)
    assert detail.count("must be longer than first_clip") == 1


def test_a_profile_that_cannot_run_is_never_taken():
    blocked = replace(S2V, cannot_run="no code")
    assert taken([blocked, A14B], "first_frame", "driving_audio") == "wan2.2-i2v-a14b"
    assert "cannot run yet" in (refusal(blocked, wish("first_frame", "driving_audio")) or "")


def test_a_wish_has_the_roles_that_are_given():
    given = {"first_frame": "http://x/a", "driving_audio": "http://x/b", "duration": 7, "resolution": "720P"}
    found = wish_of(GenerateInput.model_validate(given), None)
    assert (found.media, found.seconds, found.resolution) == (("first_frame", "driving_audio"), 7, "720P")


def test_abilities_cover_every_combination_of_the_app():
    said = abilities([SMALL, A14B])
    assert {frozenset(ability["inputs"]) for ability in said} == COMBINATIONS
    assert all(ability["models"] for ability in said)
    by_inputs = {"+".join(ability["inputs"]): ability for ability in said}
    assert by_inputs["first_frame"]["models"] == {"wan2.2-ti2v-5b": 5, "wan2.2-i2v-a14b": 7}
    assert by_inputs["first_clip"]["models"] == {"wan2.2-i2v-a14b": 8}
    assert "note" in by_inputs["first_frame+driving_audio"]
    assert "note" not in by_inputs["first_frame+last_frame"]


def test_segments_make_every_length_of_the_app():
    for ability in abilities([CHAINED]):
        assert ability["models"] == {"wan2.2-i2v-a14b": 15}
    assert taken([CHAINED, TINY], "first_clip", seconds=15, clip_seconds=3.0) == "wan2.2-i2v-a14b"


def test_a_server_that_hears_sound_does_not_deny_it():
    said = {"+".join(ability["inputs"]): ability for ability in abilities([A14B, S2V])}
    for inputs in ("first_frame+driving_audio", "first_frame+last_frame+driving_audio"):
        assert said[inputs]["models"] == {"wan2.2-i2v-a14b": 7, "wan2.2-s2v-14b": 15}
        assert "note" not in said[inputs]
    assert said["first_frame+last_frame"]["models"] == {"wan2.2-i2v-a14b": 7}


def test_a_server_for_text_alone_says_of_all_why_not():
    said = abilities([T2V])
    assert [ability["models"] for ability in said] == [{}] * len(COMBINATIONS)
    assert all("makes videos from text alone" in ability["why_not"] for ability in said)
