"""Prompts in English and Chinese for what a clip shows, put together from `configs/training/commands.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as checked

from tinywan.recipe import STRICT

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, Language] = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Content:
    """What a clip shows, in the words that prompts are made of."""

    #: a key of [moves] or [sprites]; None: the prompt does not command anything
    move: str | None
    speed: str = "normal"
    #: "photo" or a key of [words.patterns]
    pattern: str = "photo"
    colours: tuple[str, ...] = ()
    #: colour and shape
    sprite: tuple[str, str] | None = None


@checked(frozen=True, config=STRICT)
class Phrases:
    """Ways to ask for one move."""

    en: tuple[str, ...]
    zh: tuple[str, ...]
    held_out_en: tuple[str, ...]
    held_out_zh: tuple[str, ...]

    def of(self, language: Language, held_out: bool) -> tuple[str, ...]:
        return getattr(self, f"held_out_{language}" if held_out else language)


@checked(frozen=True, config=STRICT)
class Filler:
    """Talk that commands nothing."""

    en: tuple[str, ...]
    zh: tuple[str, ...]
    style_en: tuple[str, ...]
    style_zh: tuple[str, ...]


@checked(frozen=True, config=STRICT)
class Words:
    """Names of what is drawn: English word to Chinese word."""

    colours: dict[str, str]
    shapes: dict[str, str]
    patterns: dict[str, str]


@checked(frozen=True, config=STRICT)
class Commands:
    """The language of the embedded checkpoint."""

    speeds: dict[Language, dict[str, tuple[str, ...]]]
    moves: dict[str, Phrases]
    sprites: dict[str, Phrases]
    words: Words
    filler: Filler

    def caption(
        self, content: Content, rng: Random, *, language: Language | None = None, held_out: bool = False
    ) -> str:
        """One prompt for this content. `held_out` uses the phrases that training never sees."""
        language = language or ("en" if rng.random() < 0.55 else "zh")
        parts = [*self._description(content, rng, language)]
        if content.move is not None:
            parts.insert(rng.randint(0, len(parts)), self._command(content, rng, language, held_out))
        if rng.random() < 0.3 or not parts:
            parts.append(rng.choice(self.filler.style_en if language == "en" else self.filler.style_zh))
        return _sentence(parts, rng, language)

    def _command(self, content: Content, rng: Random, language: Language, held_out: bool) -> str:
        assert content.move is not None
        phrases = {**self.moves, **self.sprites}[content.move].of(language, held_out)
        speed = rng.choice(self.speeds[language][content.speed])
        subject = self._subject(content.sprite, language) if content.sprite else ""
        return rng.choice(phrases).format(speed=speed, subject=subject)

    def _description(self, content: Content, rng: Random, language: Language) -> list[str]:
        """What there is to see; often left out, because people do."""
        if rng.random() < 0.35:
            return []
        if content.pattern != "photo":
            return [self._pattern(content, language)]
        choices = self.filler.en if language == "en" else self.filler.zh
        return rng.sample(choices, 1 if rng.random() < 0.8 else 2)

    def _pattern(self, content: Content, language: Language) -> str:
        one, two = content.colours
        if language == "en":
            return f"{one} and {two} {content.pattern}"
        names = self.words.colours
        return f"{names[one]}和{names[two]}的{self.words.patterns[content.pattern]}"

    def _subject(self, sprite: tuple[str, str], language: Language) -> str:
        colour, shape = sprite
        if language == "en":
            return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"
        return self.words.colours[colour] + self.words.shapes[shape]


def load_commands(path: Path) -> Commands:
    """Read and check the phrases. Raises pydantic's ValidationError."""
    return TypeAdapter(Commands).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))


def _sentence(parts: list[str], rng: Random, language: Language) -> str:
    """Parts joined the way people write: commas or full stops, capitals or not."""
    if language == "zh":
        return rng.choice("，。,").join(parts) + rng.choice(("", "。"))
    if rng.random() < 0.5:
        return ", ".join(parts) + rng.choice(("", "."))
    return " ".join(part[0].upper() + part[1:] + "." for part in parts)
