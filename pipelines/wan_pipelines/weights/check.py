"""What lies in a folder of weights: its parts, the profiles that it serves, what is missing or broken.

`examine` reads headers, and the LoRA files of a preset. It goes on where the loader would stop: everything that is
wrong is listed at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_pipelines.errors import CheckpointError
from wan_pipelines.load import check_parts, find_parts
from wan_pipelines.profile import Profile, list_profiles
from wan_pipelines.weights.assemble import Source, check_names
from wan_pipelines.weights.disk import size_of
from wan_pipelines.weights.files import by_model, check_shards, find_lora, is_weight_file, weight_files, where
from wan_pipelines.weights.keys import title
from wan_pipelines.weights.kinds import Kind, describe, detect, measure, part_of, read_config, some
from wan_pipelines.weights.lora_file import read_lora
from wan_pipelines.weights.quantised import is_finite
from wan_pipelines.weights.receipt import matches, read_receipt
from wan_pipelines.weights.tensors import TensorSet, open_tensors
from wan_pipelines.weights.wanted import hint


@dataclass(frozen=True, slots=True)
class PartReport:
    """One model file, or the shards of one model."""

    #: within the folder
    where: str
    #: "transformer wan2.2-i2v-a14b, diffusers"
    kind: str
    tensors: int
    #: "bfloat16 816", most first
    dtypes: tuple[str, ...]
    #: bytes on disk
    size: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    parts: tuple[PartReport, ...]
    #: names of profiles that the folder is complete for
    serves: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(part.size for part in self.parts)


def examine(place: Path, config_dir: Path, profile: Profile | None = None) -> Report:
    """Look at a folder or one file. With a profile, whatever that profile misses is a problem.

    Raises CheckpointError when there is nothing at `place`.
    """
    if not place.exists():
        raise CheckpointError(f"{place} is not there{hint(profile) if profile else ''}")
    parts, kinds, unknown, problems = [], set(), [], []
    for paths in _models(place):
        try:
            check_shards(paths)
            tensors = open_tensors(paths)
            try:
                kind = detect(tensors.shapes(), tensors.dtypes(), config_dir)
            except CheckpointError as error:
                unknown.append(f"{where(paths)}: {error}")
                parts.append(_part(place, paths, tensors, _roughly(tensors)))
                continue
            parts.append(_part(place, paths, tensors, _words(kind)))
            if kind.part != "lora":
                kinds.add(kind.architecture)
                config = read_config(kind.architecture, config_dir)
                check_names(Source(kind.part, where(paths), config, tensors))
        except CheckpointError as error:
            problems.append(str(error))
    if place.is_file():
        return Report(tuple(parts), (), tuple(problems))
    problems += _broken_files(place)
    wanted = [profile] if profile else _candidates(config_dir, kinds)
    failures = {candidate.name: _failure(candidate, place, config_dir) for candidate in wanted}
    serves = tuple(name for name, failure in failures.items() if failure is None)
    if not serves:
        problems += _untold(failures, problems)
    if not (serves or problems):
        problems = ["; ".join([f"{place}: no transformer of a known profile", *unknown])]
    return Report(tuple(parts), serves, tuple(problems))


def look_deep(place: Path, on_bytes: Callable[[int], None]) -> list[str]:
    """Read everything: values that are not finite, and files that are no longer what the hub listed."""
    problems = []
    for paths in _models(place):
        try:
            tensors = open_tensors(paths)
        except CheckpointError:
            continue  # `examine` tells
        bad = [name for name in tensors.shapes() if not is_finite(tensors.read(name))]
        if bad:
            problems.append(f"{tensors.source(bad[0])}: values that are not finite: {some(bad)}")
        on_bytes(sum(path.stat().st_size for path in paths))
    receipt = read_receipt(place) if place.is_dir() else None
    for name, entry in receipt.files.items() if receipt else ():
        if size_of(place / name) == entry.size and not matches(place / name, entry.digest):
            problems.append(f"{place / name}: is not what {entry.repository} has (sha256 differs)")
    return problems


def _models(place: Path) -> list[list[Path]]:
    """The files of each model in a folder, as the loader sees them, or the one file."""
    return by_model(weight_files(place) if place.is_dir() else filter(is_weight_file, [place]))


def _candidates(config_dir: Path, kinds: set[str]) -> list[Profile]:
    """Profiles whose transformer was found."""
    return [profile for profile in list_profiles(config_dir) if profile.architecture in kinds]


def _failure(profile: Profile, place: Path, config_dir: Path) -> str | None:
    """What keeps the loader from loading this profile with its preset, None when nothing does."""
    try:
        tokenizer, sources = find_parts(profile, place, config_dir)
        check_parts(profile, place, sources, config_dir)
        for source in sources.values():
            check_names(source)
        if not tokenizer.is_dir():
            return f"{tokenizer} is missing"
        found = [(lora, find_lora(lora, place)) for lora in profile.loras]
        if missing := [f"{lora.file} of {lora.repository}" for lora, path in found if path is None]:
            return f"{place}: missing LoRA files: {', '.join(missing)}{hint(profile)}"
        return "; ".join(_damages([path for _, path in found if path])) or None
    except CheckpointError as error:
        return str(error)


def _damages(loras: Sequence[Path]) -> Iterator[str]:
    """What keeps LoRA files from being read."""
    for path in loras:
        try:
            read_lora(path)
        except CheckpointError as error:
            yield str(error)


def _untold(failures: Mapping[str, str | None], problems: Sequence[str]) -> list[str]:
    """Failures of profiles that do not only repeat a problem of a part."""
    told = {problem.partition(": ")[2] for problem in problems}
    return [f"for {name}: {text}" for name, text in failures.items() if text and text.partition(": ")[2] not in told]


def _broken_files(place: Path) -> list[str]:
    """Files that were fetched and are gone, or changed their size."""
    receipt = read_receipt(place)
    names = receipt.broken(place) if receipt else []
    return [f"{place / name}: is missing or cut, `wanbox weights get` fetches it again" for name in names]


def _part(place: Path, paths: Sequence[Path], tensors: TensorSet, kind: str) -> PartReport:
    named = where(paths).relative_to(place) if place.is_dir() else Path(place.name)
    dtypes = Counter(tensors.dtypes().values()).most_common()
    return PartReport(
        where=named.as_posix(),
        kind=kind,
        tensors=len(tensors.shapes()),
        dtypes=tuple(f"{dtype} {count}" for dtype, count in dtypes),
        size=sum(path.stat().st_size for path in paths),
    )


def _roughly(tensors: TensorSet) -> str:
    """What tensors are that are of no architecture that is bundled: the part, and its numbers."""
    try:
        part = part_of(list(tensors.shapes()))
    except CheckpointError:
        return "not known"
    return f"{title(part)} of another size ({describe(measure(part, tensors.shapes()))})"


def _words(kind: Kind) -> str:
    words = [title(kind.part), *([kind.architecture] if kind.part != "lora" else [])]
    return ", ".join([" ".join(words), kind.layout, *([kind.quantised] if kind.quantised else [])])
