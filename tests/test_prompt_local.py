"""Prompt extension by a language model on this machine: a miniature of Qwen2.5-VL, loaded, asked and let go."""

from __future__ import annotations

import gc
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from media_samples import make_image
from queue_fixtures import make_settings
from tiny_language_model import make_language_model
from wan_server.prompt import extend_prompt
from wan_server.prompt_chat import PromptError, Wish, make_chat
from wan_server.prompt_local import ask_local, fingerprint, load_processor

ANSWER = "sunlight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("models") / "Tiny-VL", ANSWER)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_language_model(tmp_path_factory.mktemp("models") / "Endless-VL", "round", endless=True)


def quiet() -> None:
    """A beat of a job that nobody cancels."""


def ask(folder: Path, wish: Wish, beat: Any = quiet, timeout_s: float = 60) -> str:
    return ask_local(folder, "cpu", timeout_s, make_chat(wish, quiet), beat)


def test_it_answers_and_its_weights_are_gone_afterwards(tmp_path: Path, model: Path) -> None:
    settings = make_settings(tmp_path, prompt_extend_local=model, device="cpu")
    picture = make_image(tmp_path / "a.png", (320, 240), "PNG")
    wish = Wish("a sea", 5, {"first_frame": picture, "last_frame": picture})
    made = extend_prompt(settings, wish, requested=True, beat=quiet)
    assert (made.prompt, made.applied, made.model, made.note) == (ANSWER, True, "Tiny-VL", None)
    assert not [thing for thing in gc.get_objects() if type(thing) is Qwen2_5_VLForConditionalGeneration]
    assert extend_prompt(settings, wish, requested=True, beat=quiet).cached


def test_text_alone_and_chinese_go_through_it_too(model: Path) -> None:
    assert ask(model, Wish("a sea", 5)) == ANSWER
    assert ask(model, Wish("平静的海", 5)) == ANSWER


def test_the_picture_reaches_the_model_as_tokens_of_its_own(tmp_path: Path, model: Path) -> None:
    chat = make_chat(Wish("a sea", 5, {"first_frame": make_image(tmp_path / "a.png", (112, 56), "PNG")}), quiet)
    processor = load_processor(model)
    (picture,) = [Image.open(io.BytesIO(part)) for part in chat.parts if isinstance(part, bytes)]
    turn = [{"type": "image", "image": picture}]
    given = processor.apply_chat_template(
        [{"role": "user", "content": turn}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert int((given["input_ids"] == processor.image_token_id).sum()) == (112 // 28) * (56 // 28)


class Cancelled(BaseException):
    """As the workflow's own."""


def test_a_cancel_is_noticed_between_two_tokens(endless: Path) -> None:
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 6:  # two are around the loading
            raise Cancelled

    with pytest.raises(Cancelled):
        ask(endless, Wish("a sea", 5), beat)
    assert beats == 6


def test_an_answer_without_end_is_cut_at_its_limit_or_given_up_in_time(endless: Path) -> None:
    began = time.monotonic()
    with pytest.raises(PromptError, match=r"no answer within 0\.01 s"):
        ask(endless, Wish("a sea", 5), timeout_s=0.01)
    assert time.monotonic() - began < 30
    assert ask(endless, Wish("a sea", 5)).startswith("roundround")


def test_a_folder_without_a_model_leaves_the_prompt(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, prompt_extend_local=tmp_path / "absent", device="cpu")
    made = extend_prompt(settings, Wish("a sea", 5), requested=True, beat=quiet)
    assert (made.prompt, made.applied, made.model) == ("a sea", False, "absent")
    assert "there is no model in" in str(made.note)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{}"),
        ("config.json", json.dumps({"model_type": "bert"}).encode()),
        ("tokenizer.json", b"{"),
        ("chat_template.jinja", b"{{ raise_exception('no system prompts') }}"),
        ("model.safetensors", b"short"),
    ],
)
def test_a_damaged_model_leaves_the_prompt(tmp_path: Path, model: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "Damaged-VL"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(content if path.name == name else path.read_bytes())
    settings = make_settings(tmp_path, prompt_extend_local=folder, device="cpu")
    made = extend_prompt(settings, Wish("a sea", 5), requested=True, beat=quiet)
    assert (made.prompt, made.applied) == ("a sea", False)
    assert "cannot be used" in str(made.note) or "cannot run" in str(made.note)


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    os.utime(tmp_path / "model.safetensors", (1, 1))
    assert fingerprint(tmp_path) != before
