"""Prompt extension by any OpenAI-compatible chat endpoint. A failure keeps the caller's prompt and says so."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from PIL import Image, ImageOps
from pydantic import BaseModel, ValidationError

from wan_server.settings import Settings

#: longest side of the image that is shown to the language model, in pixels
IMAGE_SIDE: Final = 512
MAX_PROMPT: Final = 5000

SYSTEM_PROMPT: Final = """You write prompts for a video model that animates a still image.
You are given the image, when there is one, and the user's wish. Answer with one prompt and nothing else.
Keep every subject, action and camera move that the user names. Describe motion first: what moves, how fast, in which
order, what the camera does. Leave out what can already be seen in the image. Never add people, text or brands.
If the wish is empty, think of one plausible, calm motion for the scene.
Use the language of the wish; at most 100 words."""


@dataclass(frozen=True, slots=True)
class Extension:
    """The prompt that is rendered and how it came about."""

    prompt: str
    requested: bool
    applied: bool
    model: str | None = None
    #: why it was not applied
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice]


def extend_prompt(settings: Settings, prompt: str, image: Path | None, requested: bool) -> Extension:
    """Rewrite `prompt` with the configured language model, showing it `image` when there is one."""
    if not requested:
        return Extension(prompt, requested=False, applied=False)
    if settings.prompt_extend_url is None:
        return Extension(prompt, True, False, note="prompt_extend: this server has no language model configured")
    try:
        text = _ask(settings, prompt, image)
    except httpx.HTTPStatusError as error:
        return _kept(settings, prompt, f"HTTP {error.response.status_code}")
    except (httpx.HTTPError, ValidationError, ValueError, OSError) as error:
        return _kept(settings, prompt, type(error).__name__)
    return Extension(text, True, True, settings.prompt_extend_model)


def _kept(settings: Settings, prompt: str, reason: str) -> Extension:
    note = f"prompt_extend: the language model failed ({reason}); the prompt was used as it is"
    return Extension(prompt, True, False, settings.prompt_extend_model, note)


def _ask(settings: Settings, prompt: str, image: Path | None) -> str:
    headers = {"Authorization": f"Bearer {settings.prompt_extend_key}"} if settings.prompt_extend_key else {}
    body = {
        "model": settings.prompt_extend_model,
        "messages": [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": _user_content(prompt, image)},
        ],
        "max_tokens": 512,
    }
    url = f"{str(settings.prompt_extend_url).rstrip('/')}/chat/completions"
    answer = httpx.post(url, json=body, headers=headers, timeout=settings.prompt_extend_timeout_s)
    answer.raise_for_status()
    choices = _Completion.model_validate_json(answer.content).choices
    text = choices[0].message.content.strip() if choices else ""
    if not text or len(text) > MAX_PROMPT:
        raise ValueError(f"answer of {len(text)} characters")
    return text


def _user_content(prompt: str, image: Path | None) -> str | list[dict[str, Any]]:
    if image is None:
        return prompt
    wish = {"type": "text", "text": prompt or "(no wish given)"}
    return [{"type": "image_url", "image_url": {"url": _data_url(image)}}, wish]


def _data_url(path: Path) -> str:
    with Image.open(path) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
