"""Prompt extension: a language model rewrites the prompt for the video model. A failure keeps the caller's words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from wan_server.prompt_cache import PromptCache
from wan_server.prompt_chat import Beat, Chat, PromptError, Wish, make_chat, read_answer
from wan_server.prompt_local import ask_local, fingerprint
from wan_server.prompt_service import ask_service
from wan_server.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Extension:
    """The prompt that is rendered and how it came about."""

    prompt: str
    requested: bool
    applied: bool
    model: str | None = None
    #: why it was not applied
    note: str | None = None
    #: the answer is from an earlier, equal question
    cached: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """What answers."""

    #: as output_meta names it
    name: str
    #: changes with whatever may change its answers
    identity: str
    ask: Callable[[Chat, Beat], str]


def extend_prompt(settings: Settings, wish: Wish, requested: bool, beat: Beat) -> Extension:
    """Rewrite the prompt of a wish with the configured language model, or take what it answered before.

    `beat` is called again and again while the model is at work; what it raises ends the call.
    """
    if not requested:
        return Extension(wish.prompt, requested=False, applied=False)
    model = configured(settings)
    if model is None:
        return Extension(wish.prompt, True, False, note="prompt_extend: this server has no language model configured")
    cache = PromptCache(settings.data_dir / "prompts")
    try:
        chat = make_chat(wish, beat)
        key = chat.key(model.identity)
        if (known := cache.get(key)) is not None:
            return Extension(known, True, True, model.name, cached=True)
        text = read_answer(model.ask(chat, beat))
    except PromptError as error:
        logger.warning("the language model %s failed: %s", model.name, error)
        note = f"prompt_extend: the language model failed ({error}); the prompt was used as it is"
        return Extension(wish.prompt, True, False, model.name, note)
    cache.put(key, text)
    return Extension(text, True, True, model.name)


def configured(settings: Settings) -> LanguageModel | None:
    """The language model that the settings name; the local one or the service, never both."""
    timeout_s = settings.prompt_extend_timeout_s
    if folder := settings.prompt_extend_local:
        ask = partial(ask_local, folder, settings.device, timeout_s)
        return LanguageModel(folder.absolute().name, fingerprint(folder), ask)
    if url := settings.prompt_extend_url:
        name = settings.prompt_extend_model
        return LanguageModel(name, f"{url} {name}", partial(ask_service, settings))
    return None
