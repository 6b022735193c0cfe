"""One question to a language model: system prompt, pictures at a bounded size, the wish. And its answer, read."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wan_pipelines.errors import PipelineError
from wan_server.prompt_texts import LABELS, language_of, system_prompt, task_of
from wan_server.schema import MAX_PROMPT

if TYPE_CHECKING:
    from PIL import Image

Beat = Callable[[], None]

#: longest side of a picture that is shown to the language model, in pixels
IMAGE_SIDE: Final = 512
JPEG_QUALITY: Final = 85
#: of a clip the model sees two frames, a second apart
CLIP_FPS: Final = 4
MAX_ANSWER_TOKENS: Final = 512

_QUOTED: Final = re.compile(r'"([^"]*)"|“([^“”]*)”|「([^「」]*)」')


class PromptError(Exception):
    """The language model gave no prompt that can be used; the message says why, in words for output_meta."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller wants to see, and the files that the video begins and ends with."""

    prompt: str
    #: length of what is to be made, in seconds: without that of a continued clip
    seconds: float
    #: role -> file, of pictures and the clip
    shown: Mapping[str, Path] = field(default_factory=dict)
    clip_seconds: float = 0.0
    #: tells the language when there is no prompt
    negative_prompt: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A system prompt and one turn of the user."""

    system: str
    #: in order; bytes are pictures as JPEG
    parts: tuple[str | bytes, ...]

    def key(self, model: str) -> str:
        """Digest of everything that decides the answer. `model`: what tells this model from others."""
        digest = hashlib.sha256()
        for part in (model, self.system, *self.parts):
            data = part if isinstance(part, bytes) else part.encode()
            digest.update(f"{type(part).__name__} {len(data)}\n".encode() + data)
        return digest.hexdigest()


def make_chat(wish: Wish, beat: Beat) -> Chat:
    """The question about a wish. Raises PromptError when a picture cannot be read."""
    language = language_of(wish.prompt or wish.negative_prompt)
    labels = LABELS[language]
    parts: list[str | bytes] = []
    try:
        for name, picture in _pictures(wish, beat):
            parts += [labels[name], as_jpeg(picture)]
    except (OSError, PipelineError) as error:
        raise PromptError(f"a picture for it cannot be read: {error}") from error
    said = labels["wish" if wish.prompt.strip() else "no_wish"]
    parts.append(said.format(seconds=wish.seconds, prompt=wish.prompt))
    return Chat(system_prompt(language, task_of(wish.prompt, wish.shown)), tuple(parts))


def read_answer(text: str) -> str:
    """The prompt in an answer: without a reasoning model's thoughts, line breaks and quotation marks around it.

    Raises PromptError when nothing is left, or more than a prompt may have.
    """
    text = " ".join(text.rpartition("</think>")[2].split())
    if text.startswith("<think>"):
        raise PromptError("it thought for longer than its answer may be")
    if quoted := _QUOTED.fullmatch(text):
        text = quoted[quoted.lastindex or 0].strip()
    if not text:
        raise PromptError("its answer is empty")
    if len(text) > MAX_PROMPT:
        raise PromptError(f"its answer has {len(text)} characters, more than {MAX_PROMPT}")
    return text


def as_jpeg(picture: Image.Image) -> bytes:
    """The picture with its longest side at most `IMAGE_SIDE`."""
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _pictures(wish: Wish, beat: Beat) -> Iterator[tuple[str, Image.Image]]:
    """Each picture with the name of its label, in the order of the video."""
    from wan_pipelines.pixels import load_image

    if clip := wish.shown.get("first_clip"):
        yield from _clip_end(clip, wish.clip_seconds, beat)
    for role in ("first_frame", "last_frame"):
        if path := wish.shown.get(role):
            yield role, load_image(path)


def _clip_end(path: Path, seconds: float, beat: Beat) -> Iterator[tuple[str, Image.Image]]:
    from wan_pipelines.clip import shown_frames, upright

    last = int(seconds * CLIP_FPS)
    wanted = {last - CLIP_FPS: "clip_before", last: "clip_end"}
    for k, frame in enumerate(shown_frames(path, CLIP_FPS, last + 1)):
        beat()
        if k in wanted:
            yield wanted[k], upright(frame)
