"""Finds the parts of a checkpoint in a folder of any layout: by what is in the files, not by what they are called.

Only two things are taken from names: which of two transformers is for high noise, and which shards belong together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wan_pipelines.errors import CheckpointError
from wan_pipelines.weights.assemble import Source
from wan_pipelines.weights.files import DEPTH, by_model, check_shards, weight_files, where
from wan_pipelines.weights.keys import Part, title
from wan_pipelines.weights.kinds import Kind, detect, read_config
from wan_pipelines.weights.tensors import TensorSet, open_tensors

Expert = Literal["high", "low"]
_NOISE = re.compile(r"(high|low)[ _-]?noise")
_WORD = re.compile(r"(?<![a-z])(high|low)(?![a-z])")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


@dataclass(frozen=True, slots=True)
class Found:
    """The weights of one model and what they are."""

    #: the file, or the folder of the shards
    where: Path
    tensors: TensorSet
    kind: Kind
    config: dict[str, Any]

    @property
    def source(self) -> Source:
        return Source(self.kind.part, self.where, self.config, self.tensors)


@dataclass(frozen=True, slots=True)
class Contents:
    """What lies in a folder."""

    folder: Path
    found: tuple[Found, ...]
    #: weight files that are nothing known or cannot be read, each with the reason
    foreign: tuple[str, ...]
    tokenizers: tuple[Path, ...]

    def one(self, part: Part, fits: Callable[[Found], bool] = lambda found: True, of: str | None = None) -> Found:
        """The only model of a part that fits. Raises CheckpointError when there is none, or a choice.

        `of` names in errors what would fit.
        """
        here = [item for item in self.found if item.kind.part == part]
        fitting = [item for item in here if fits(item)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise CheckpointError(f"{self.folder}: several could be the {title(part)}: {_list(fitting)}; leave one")
        raise CheckpointError(f"{self.folder}: no {title(part)}{_of(of)} found{self._instead(here)}")

    def experts(self, two: bool, fits: Callable[[Found], bool], of: str | None = None) -> list[Found]:
        """The transformer, or the one for high noise and the one for low noise. Raises CheckpointError."""
        if not two:
            return [self.one("transformer", fits, of)]
        here = [item for item in self.found if item.kind.part == "transformer"]
        fitting = [item for item in here if fits(item)]
        if len(fitting) < 2:
            raise CheckpointError(
                f"{self.folder}: two transformers{_of(of)} are needed, {len(fitting)} found{self._instead(here)}"
            )
        by_role = {expert_of(item.where.relative_to(self.folder)): item for item in fitting}
        if len(fitting) > 2 or by_role.keys() != {"high", "low"}:
            raise CheckpointError(
                f"{self.folder}: cannot tell which transformer is for high and which for low noise: {_list(fitting)}; "
                "there must be two, with high and low in the names of files or folders"
            )
        return [by_role["high"], by_role["low"]]

    @property
    def tokenizer(self) -> Path:
        """The folder of the text encoder's tokenizer. Raises CheckpointError."""
        named = [path for path in self.tokenizers if path.name in ("tokenizer", "umt5-xxl")]
        if len(named or self.tokenizers) == 1:
            return (named or self.tokenizers)[0]
        what = "several folders with a tokenizer" if self.tokenizers else "no tokenizer"
        raise CheckpointError(
            f"{self.folder}: {what}; put that of google/umt5-xxl into {self.folder / 'tokenizer'} "
            f"({' or '.join(TOKENIZER_FILES)})"
        )

    def _instead(self, here: Sequence[Found]) -> str:
        """What is there in place of what is missing, to be put behind it."""
        others = [f"there {'is' if len(here) == 1 else 'are'} {_list(here)}"] if here else []
        return "".join(f"; {line}" for line in (*others, *self.foreign))


def scan(folder: Path, config_dir: Path | None = None) -> Contents:
    """Everything in a folder and the folders below. Raises CheckpointError for a shard that is missing.

    A file that cannot be read is named when a part is missing, and stops nothing when all are there.
    """
    found, foreign = [], []
    groups = by_model(weight_files(folder))
    for paths in groups:
        check_shards(paths)
    for paths in groups:
        try:
            tensors = open_tensors(paths)
        except CheckpointError as error:
            foreign.append(f"cannot be read: {error}")
            continue
        try:
            kind = detect(tensors.shapes(), tensors.dtypes(), config_dir)
        except CheckpointError as error:
            foreign.append(f"not known: {where(paths)}: {error}")
            continue
        if kind.part != "lora":
            # plain numbers in a GGUF file cannot be told from others by name and dtype
            kind = replace(kind, layout="gguf") if paths[0].suffix.lower() == ".gguf" else kind
            found.append(Found(where(paths), tensors, kind, read_config(kind.architecture, config_dir)))
    return Contents(folder, tuple(found), tuple(foreign), tuple(_tokenizers(folder, DEPTH)))


def model_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """The one file or the shards of a model in a diffusers folder. Raises CheckpointError."""
    single = folder / f"{stem}.safetensors"
    shards = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if single.is_file() and shards:
        raise CheckpointError(f"{folder}: has both {single.name} and shards of it; leave one")
    if single.is_file():
        return (single,)
    if not shards:
        raise CheckpointError(f"{folder}: no file named {single.name}, and no shards of it")
    check_shards(shards)
    return tuple(shards)


def expert_of(path: Path) -> Expert | None:
    """Which noise a transformer is for, by its name within the folder; None when the name says neither or both."""
    text = path.as_posix().lower()
    said = set(_NOISE.findall(text)) or set(_WORD.findall(text))
    return said.pop() if len(said) == 1 else None


def _tokenizers(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        if "roberta" not in folder.name:  # the tokenizer of CLIP's text half, which nothing reads
            yield folder
    elif depth:
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _tokenizers(entry, depth - 1)


def _of(what: str | None) -> str:
    return f" of {what}" if what else ""


def _list(found: Sequence[Found]) -> str:
    return ", ".join(f"{item.where} ({item.kind.architecture})" for item in found)
