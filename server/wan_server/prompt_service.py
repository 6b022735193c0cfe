"""The language model behind an OpenAI-compatible chat endpoint. A cancel ends the call at once."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any, Final

import httpx
from pydantic import BaseModel, ValidationError

from wan_server.prompt_chat import MAX_ANSWER_TOKENS, Beat, Chat, PromptError
from wan_server.settings import Settings

#: seconds between two looks whether the job is still wanted
BEAT_EVERY_S: Final = 0.25
MAX_ANSWER_BYTES: Final = 1 << 20


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice]


def ask_service(settings: Settings, chat: Chat, beat: Beat) -> str:
    """The answer of the configured service. Raises PromptError, and whatever `beat` raises."""
    body = {
        "model": settings.prompt_extend_model,
        "messages": [
            {"role": "system", "content": chat.system},
            {"role": "user", "content": _content(chat)},
        ],
        "max_tokens": MAX_ANSWER_TOKENS,
    }
    try:
        data = asyncio.run(_while_beating(settings, body, beat))
        choices = _Completion.model_validate_json(data).choices
    except httpx.HTTPStatusError as error:
        raise PromptError(f"HTTP {error.response.status_code}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PromptError(type(error).__name__) from error
    except ValidationError as error:
        raise PromptError("its answer is no chat completion") from error
    return choices[0].message.content if choices else ""


async def _while_beating(settings: Settings, body: dict[str, Any], beat: Beat) -> bytes:
    """The body of the answer. `beat` is called all the while; what it raises closes the connection."""
    deadline = time.monotonic() + settings.prompt_extend_timeout_s
    call = asyncio.ensure_future(_post(settings, body))
    try:
        while not call.done():
            beat()
            left = deadline - time.monotonic()
            if left <= 0:
                raise PromptError(f"no answer within {settings.prompt_extend_timeout_s:g} s")
            await asyncio.wait({call}, timeout=min(BEAT_EVERY_S, left))
        return call.result()
    finally:
        call.cancel()
        await asyncio.wait({call})


async def _post(settings: Settings, body: dict[str, Any]) -> bytes:
    url = f"{str(settings.prompt_extend_url).rstrip('/')}/chat/completions"
    headers = {"Authorization": f"Bearer {settings.prompt_extend_key}"} if settings.prompt_extend_key else {}
    data = bytearray()
    # the time is watched from outside: httpx's own limits hold for each packet only
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream("POST", url, json=body, headers=headers) as answer,
    ):
        answer.raise_for_status()
        async for chunk in answer.aiter_bytes():
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise PromptError(f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(data)


def _content(chat: Chat) -> str | list[dict[str, Any]]:
    """The user's turn; a plain string when there are no pictures, which every service understands."""
    if len(chat.parts) == 1 and isinstance(chat.parts[0], str):
        return chat.parts[0]
    return [_part(part) for part in chat.parts]


def _part(part: str | bytes) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(part).decode()}}
