"""What a language model is told and shown, in which language, and how its answer is read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from media_samples import make_clip, make_image, psnr, read_video
from wan_server.prompt_cache import PromptCache
from wan_server.prompt_chat import Chat, PromptError, Wish, make_chat, read_answer
from wan_server.prompt_texts import LABELS, language_of, system_prompt, task_of

TASKS = ("text", "first frame", "first+last frame", "continuation", "empty")


def quiet() -> None:
    """A beat of a job that nobody cancels."""


def pictures(chat: Chat) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(part)).convert("RGB")) for part in chat.parts if isinstance(part, bytes)]


def texts(chat: Chat) -> list[str]:
    return [part for part in chat.parts if isinstance(part, str)]


# ---- texts ---------------------------------------------------------------------------------------------------------


def test_there_is_a_text_of_its_own_for_each_task_and_language():
    said = [system_prompt(language, task) for language in ("en", "zh") for task in TASKS]
    assert len(set(said)) == 10
    assert all(len(text) > 200 for text in said)
    assert LABELS["en"].keys() == LABELS["zh"].keys()


@pytest.mark.parametrize("task", TASKS)
def test_each_language_is_written_in_itself(task):
    assert language_of(system_prompt("en", task)) == "en"
    assert language_of(system_prompt("zh", task)) == "zh"


@pytest.mark.parametrize(
    ("prompt", "roles", "task"),
    [
        ("a sea", (), "text"),
        ("a sea", ("first_frame",), "first frame"),
        ("a sea", ("first_frame", "last_frame"), "first+last frame"),
        ("a sea", ("first_clip",), "continuation"),
        ("a sea", ("first_clip", "last_frame"), "continuation"),
        ("", ("first_frame",), "empty"),
        (" \n", ("first_clip", "last_frame"), "empty"),
    ],
)
def test_the_task_follows_from_prompt_and_media(prompt: str, roles: tuple[str, ...], task: str):
    assert task_of(prompt, roles) == task


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a calm sea", "en"),
        ("平静的海面，镜头向左移动", "zh"),
        ("一只cat跑过草地", "zh"),
        ('a shop sign that says "欢迎"', "en"),
        ("静かな海", "en"),  # kana: Japanese, which the English text asks to keep
        ("спокойное море", "en"),
        ("", "en"),
    ],
)
def test_the_language_is_that_of_the_prompt(text: str, language: str):
    assert language_of(text) == language


# ---- the question --------------------------------------------------------------------------------------------------


def test_an_empty_prompt_takes_its_language_from_the_negative_one(tmp_path: Path):
    shown = {"first_frame": make_image(tmp_path / "a.png", format="PNG")}
    chat = make_chat(Wish("", 5, shown, negative_prompt="模糊，变形"), quiet)
    assert chat.system == system_prompt("zh", "empty")
    assert texts(chat) == ["第一帧：", "时长：5秒。"]
    assert texts(make_chat(Wish(" ", 2.5, shown), quiet)) == ["First picture:", "Length: 2.5 s."]


def test_braces_in_a_prompt_are_only_text():
    assert texts(make_chat(Wish("{seconds} {x}", 5), quiet)) == ["Length: 5 s. Wish: {seconds} {x}"]


def test_of_a_clip_two_frames_from_its_end_are_shown_and_the_picture_it_ends_on(tmp_path: Path):
    clip = make_clip(tmp_path / "a.mp4", (320, 240), 3.0, 10)
    shown = {"last_frame": make_image(tmp_path / "b.png", (160, 120), "PNG"), "first_clip": clip}
    chat = make_chat(Wish("go on", 2, shown, clip_seconds=3.0), quiet)
    assert chat.system == system_prompt("en", "continuation")
    assert texts(chat)[:3] == ["Shortly before the end of the clip:", "Last picture of the clip:", "Last picture:"]
    before, end, goal = pictures(chat)
    frames = read_video(clip)
    assert psnr(end, frames[-1]) > 28
    assert psnr(before, frames[20]) > 28
    assert psnr(before, frames[-1]) < 28
    assert goal.shape == (120, 160, 3)


def test_a_short_clip_shows_its_last_frame_alone(tmp_path: Path):
    clip = make_clip(tmp_path / "a.mp4", (320, 240), 0.8, 10)
    assert len(pictures(make_chat(Wish("go on", 2, {"first_clip": clip}, clip_seconds=0.8), quiet))) == 1


def test_a_cancel_is_noticed_while_a_clip_is_read(tmp_path: Path):
    class Cancelled(BaseException):
        pass

    def beat() -> None:
        raise Cancelled

    clip = make_clip(tmp_path / "a.mp4", (320, 240), 2.0, 10)
    with pytest.raises(Cancelled):
        make_chat(Wish("go on", 2, {"first_clip": clip}, clip_seconds=2.0), beat)


def test_a_see_through_deep_or_turned_picture_is_shown_as_it_is_meant(tmp_path: Path):
    shown = {"first_frame": make_image(tmp_path / "a.png", (40, 20), "PNG", mode="RGBA")}
    assert pictures(make_chat(Wish("x", 5, shown), quiet))[0].shape == (20, 40, 3)
    shown = {"first_frame": make_image(tmp_path / "a.jpg", (4000, 2000), orientation=6)}
    assert pictures(make_chat(Wish("x", 5, shown), quiet))[0].shape == (512, 256, 3)


# ---- the answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ("a sea", "a sea"),
        ("  a sea\n\n rolls  in ", "a sea rolls in"),
        ('"a sea"', "a sea"),
        ("“平静的海”", "平静的海"),
        ('"a" and "b"', '"a" and "b"'),
        ("<think>The user\nwants</think>\na sea", "a sea"),
        ("The user\nwants</think>\na sea", "a sea"),  # the template had begun the thought
    ],
)
def test_an_answer_is_read_as_one_line(answer: str, prompt: str):
    assert read_answer(answer) == prompt


@pytest.mark.parametrize("answer", ["", " \n", '""', "x" * 5001, "<think>The user wants"])
def test_an_answer_that_cannot_be_a_prompt_is_refused(answer: str):
    with pytest.raises(PromptError, match="its answer"):
        read_answer(answer)


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_a_key_tells_every_part_from_every_other():
    chats = [Chat("s", ("a", "b")), Chat("s", ("ab",)), Chat("sa", ("b",)), Chat("s", (b"a", "b")), Chat("s", ())]
    assert len({chat.key("m") for chat in chats} | {chats[0].key("n")}) == 6
    assert Chat("s", ("a", "b")).key("m") == chats[0].key("m")


def test_the_least_recently_used_answer_goes_first(tmp_path: Path):
    cache = PromptCache(tmp_path / "prompts", max_entries=2)
    for age, key in ((30, "old"), (20, "new")):
        cache.put(key, f"{key} 海")
        os.utime(tmp_path / "prompts" / f"{key}.txt", (age, age))
    assert cache.get("old") == "old 海"  # and now it is the one used last
    cache.put("newest", "x")
    assert [cache.get(key) for key in ("old", "new", "newest")] == ["old 海", None, "x"]
    assert sorted(path.suffix for path in (tmp_path / "prompts").iterdir()) == [".txt", ".txt"]


def test_a_folder_that_cannot_be_written_costs_only_the_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "prompts").write_text("a file where the folder should be")
    cache = PromptCache(tmp_path / "prompts")
    cache.put("key", "text")
    assert cache.get("key") is None
    assert "is not kept" in caplog.text


def test_a_broken_entry_counts_as_none(tmp_path: Path):
    for data in (b"", b"\xff\xfe"):
        (tmp_path / "key.txt").write_bytes(data)
        assert PromptCache(tmp_path).get("key") is None
