"""Prompt extension against a real HTTP server that speaks the OpenAI chat protocol, well, badly and never."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from chat_service import ChatService, chat_service, completion, picture_of
from media_samples import make_image
from queue_fixtures import make_settings
from wan_server.prompt import extend_prompt
from wan_server.prompt_chat import IMAGE_SIDE, Wish
from wan_server.settings import Settings, SettingsError, load_settings

SEA = Wish("a sea", seconds=5)


def settings_for(folder: Path, service: ChatService, **given: Any) -> Settings:
    named = {"prompt_extend_url": service.url, "prompt_extend_model": "some-vl", "prompt_extend_key": "secret"}
    return make_settings(folder, **named | given)


def quiet() -> None:
    """A beat of a job that nobody cancels."""


def test_text_alone_is_sent_as_a_string_and_the_answer_is_used(tmp_path: Path) -> None:
    with chat_service(completion("  a calm sea,\n the camera glides left  ")) as service:
        made = extend_prompt(settings_for(tmp_path, service), SEA, requested=True, beat=quiet)
    assert (made.prompt, made.applied, made.model) == ("a calm sea, the camera glides left", True, "some-vl")
    assert (made.note, made.cached) == (None, False)
    path, headers, body = service.asked[0]
    assert (path, headers["Authorization"], body["model"]) == ("/v1/chat/completions", "Bearer secret", "some-vl")
    assert service.messages()[1] == "Length: 5 s. Wish: a sea"


def test_pictures_are_attached_in_order_each_with_its_name(tmp_path: Path) -> None:
    shown = {
        "last_frame": make_image(tmp_path / "b.jpg", (300, 300)),
        "first_frame": make_image(tmp_path / "a.png", (1200, 600), "PNG"),
    }
    with chat_service(completion("x")) as service:
        extend_prompt(settings_for(tmp_path, service), Wish("a sea", 5, shown), requested=True, beat=quiet)
    first, first_picture, last, last_picture, said = service.messages()[1]
    assert [part["text"] for part in (first, last, said)] == [
        "First picture:",
        "Last picture:",
        "Length: 5 s. Wish: a sea",
    ]
    assert picture_of(first_picture).size == (IMAGE_SIDE, IMAGE_SIDE // 2)
    assert picture_of(last_picture).size == (300, 300)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"oops", "(HTTP 500)"),
        (302, b"", "(HTTP 302)"),
        (200, b"not json", "(its answer is no chat completion)"),
        (200, b'{"choices": [{"message": {"content": null}}]}', "(its answer is no chat completion)"),
        (200, b'{"choices": []}', "(its answer is empty)"),
        (200, completion(""), "(its answer is empty)"),
        (200, completion("<think>hm</think> "), "(its answer is empty)"),
        (200, completion("x" * 5001), "(its answer has 5001 characters, more than 5000)"),
        (200, b" " * (1 << 20) + completion("x"), "(its answer is larger than 1048576 bytes)"),
    ],
)
def test_a_failing_model_leaves_the_prompt_and_is_reported(
    tmp_path: Path, status: int, body: bytes, reason: str
) -> None:
    with chat_service(body, status) as service:
        made = extend_prompt(settings_for(tmp_path, service), SEA, requested=True, beat=quiet)
    assert (made.prompt, made.applied, made.model) == ("a sea", False, "some-vl")
    assert made.note == f"prompt_extend: the language model failed {reason}; the prompt was used as it is"


def test_an_absent_server_leaves_the_prompt(tmp_path: Path) -> None:
    with chat_service(b"") as service:
        pass  # closed again: nobody listens on its port
    made = extend_prompt(settings_for(tmp_path, service), SEA, requested=True, beat=quiet)
    assert (made.prompt, made.applied) == ("a sea", False)
    assert "ConnectError" in str(made.note)


def test_a_silent_server_is_given_up_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    with chat_service(b"", silent=True) as service:
        settings = settings_for(tmp_path, service, prompt_extend_timeout_s=0.4)
        made = extend_prompt(settings, SEA, requested=True, beat=quiet)
        assert service.hung_up.wait(5)
    assert (made.prompt, made.applied) == ("a sea", False)
    assert "(no answer within 0.4 s)" in str(made.note)
    assert time.monotonic() - began < 5


class Cancelled(BaseException):
    """As the workflow's own: no Exception, so nothing on the way may take it for a failure."""


def test_a_cancel_is_noticed_during_the_call_and_closes_the_connection(tmp_path: Path) -> None:
    with chat_service(b"", silent=True) as service:

        def beat() -> None:
            if service.arrived.is_set():
                raise Cancelled

        began = time.monotonic()
        with pytest.raises(Cancelled):
            extend_prompt(settings_for(tmp_path, service), SEA, requested=True, beat=beat)
        assert time.monotonic() - began < 3
        assert service.hung_up.wait(5)


def test_the_same_question_is_asked_once(tmp_path: Path) -> None:
    picture = make_image(tmp_path / "a.png", (320, 240), "PNG")
    with chat_service(completion("longer")) as service:
        settings = settings_for(tmp_path, service)
        wish = Wish("a sea", 5, {"first_frame": picture})
        _, made = (extend_prompt(settings, wish, requested=True, beat=quiet) for _ in range(2))
        assert (made.prompt, made.applied, made.cached, len(service.asked)) == ("longer", True, True, 1)
        others = [
            Wish("the sea", 5, {"first_frame": picture}),
            Wish("a sea", 4, {"first_frame": picture}),
            Wish("a sea", 5, {"last_frame": picture}),
            Wish("a sea", 5, {"first_frame": make_image(tmp_path / "b.png", (300, 240), "PNG")}),
        ]
        assert not any(extend_prompt(settings, wish, True, quiet).cached for wish in others)
        other_model = settings.model_copy(update={"prompt_extend_model": "other-vl"})
        assert not extend_prompt(other_model, others[0], True, quiet).cached


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    with chat_service(b"", 503) as service:
        settings = settings_for(tmp_path, service)
        assert not extend_prompt(settings, SEA, True, quiet).applied
        service.status, service.body = 200, completion("a wide sea")
        assert extend_prompt(settings, SEA, True, quiet).prompt == "a wide sea"


def test_a_picture_that_cannot_be_read_leaves_the_prompt(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno picture after all")
    with chat_service(completion("x")) as service:
        made = extend_prompt(settings_for(tmp_path, service), Wish("a sea", 5, {"first_frame": broken}), True, quiet)
    assert (made.prompt, made.applied, service.asked) == ("a sea", False, [])
    assert "a picture for it cannot be read" in str(made.note)


def test_there_is_one_language_model_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANBOX_PROMPT_EXTEND_LOCAL", "")
    assert load_settings().prompt_extend_local is None
    monkeypatch.setenv("WANBOX_PROMPT_EXTEND_LOCAL", "models/vl")
    assert load_settings().prompt_extend_local == Path("models/vl")
    monkeypatch.setenv("WANBOX_PROMPT_EXTEND_URL", "http://127.0.0.1:11434/v1")
    with pytest.raises(SettingsError, match=r"^WANBOX_PROMPT_EXTEND_LOCAL: cannot be given together with prompt_ext"):
        load_settings()


def test_without_a_model_it_says_so(tmp_path: Path) -> None:
    made = extend_prompt(make_settings(tmp_path), SEA, requested=True, beat=quiet)
    assert (made.prompt, made.applied) == ("a sea", False)
    assert "no language model configured" in str(made.note)


def test_it_is_not_asked_when_not_wanted(tmp_path: Path) -> None:
    with chat_service(completion("other")) as service:
        made = extend_prompt(settings_for(tmp_path, service), SEA, requested=False, beat=quiet)
    assert (made.prompt, made.applied, made.note, service.asked) == ("a sea", False, None, [])
