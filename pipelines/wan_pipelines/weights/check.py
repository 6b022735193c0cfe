"""What lies in a folder of weights: its parts, the profiles that it serves, what is missing or broken.

`examine` reads headers only, and goes on where the loader would stop: everything that is wrong is listed at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_pipelines.errors import CheckpointError
from wan_pipelines.load import check_parts, find_parts
from wan_pipelines.profile import Profile, list_profiles
from wan_pipelines.weights.assemble import Source, check_names
from wan_pipelines.weights.convert_plan import check_shards, group_files, title
from wan_pipelines.weights.disk import size_of
from wan_pipelines.weights.kinds import Kind, detect, part_of, read_config, some
from wan_pipelines.weights.quantised import is_finite
from wan_pipelines.weights.receipt import matches, read_receipt
from wan_pipelines.weights.tensors import TensorSet, open_tensors


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
        more = f"; `wanbox weights get {profile.name}` fetches it" if profile else ""
        raise CheckpointError(f"{place} is not there{more}")
    parts, kinds, problems = [], set(), []
    for paths in group_files(place):
        try:
            check_shards(paths)
            tensors = open_tensors(paths)
            kind = _kind(tensors, config_dir)
            parts.append(_part(place, paths, tensors, kind))
            if isinstance(kind, Kind) and kind.part != "lora":
                kinds.add(kind.architecture)
                where = paths[0] if len(paths) == 1 else paths[0].parent
                check_names(Source(kind.part, where, read_config(kind.architecture, config_dir), tensors))
        except CheckpointError as error:
            problems.append(str(error))
    if place.is_file():
        return Report(tuple(parts), (), tuple(problems))
    problems += _broken_files(place)
    wanted = [profile] if profile else _candidates(config_dir, kinds)
    failures = {candidate.name: _failure(candidate, place, config_dir) for candidate in wanted}
    serves = tuple(name for name, failure in failures.items() if failure is None)
    if not serves:
        problems += _untold(failures, problems) or ([] if problems else [f"{place}: no transformer of a known profile"])
    return Report(tuple(parts), serves, tuple(problems))


def look_deep(place: Path, on_bytes: Callable[[int], None]) -> list[str]:
    """Read everything: values that are not finite, and files that are no longer what the hub listed."""
    problems = []
    for paths in group_files(place):
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


def _candidates(config_dir: Path, kinds: set[str]) -> list[Profile]:
    """Profiles whose transformer was found."""
    return [profile for profile in list_profiles(config_dir) if profile.architecture in kinds]


def _failure(profile: Profile, place: Path, config_dir: Path) -> str | None:
    """The first thing that keeps the loader from loading this profile, None when nothing does."""
    try:
        tokenizer, sources = find_parts(profile, place, config_dir)
        check_parts(profile, place, sources, config_dir)
        for source in sources.values():
            check_names(source)
        if not tokenizer.is_dir():
            return f"{tokenizer} is missing"
        for lora in profile.loras:
            if not (path := lora.path_in(place)).is_file():
                return f"{path} is missing; `wanbox weights get {profile.name}:{profile.preset}` fetches it"
    except CheckpointError as error:
        return str(error)
    return None


def _untold(failures: Mapping[str, str | None], problems: Sequence[str]) -> list[str]:
    """Failures of profiles that do not only repeat a problem of a part."""
    told = {problem.partition(": ")[2] for problem in problems}
    return [f"for {name}: {text}" for name, text in failures.items() if text and text.partition(": ")[2] not in told]


def _broken_files(place: Path) -> list[str]:
    """Files that were fetched and are gone, or changed their size."""
    receipt = read_receipt(place)
    names = receipt.broken(place) if receipt else []
    return [f"{place / name}: is missing or cut, `wanbox weights get` fetches it again" for name in names]


def _part(place: Path, paths: Sequence[Path], tensors: TensorSet, kind: Kind | str) -> PartReport:
    first = paths[0] if place.is_dir() else Path(paths[0].name)
    where = (first if len(paths) == 1 else first.parent).relative_to(place if place.is_dir() else Path())
    dtypes = Counter(tensors.dtypes().values()).most_common()
    return PartReport(
        where=where.as_posix(),
        kind=kind if isinstance(kind, str) else _title(kind),
        tensors=len(tensors.shapes()),
        dtypes=tuple(f"{dtype} {count}" for dtype, count in dtypes),
        size=sum(path.stat().st_size for path in paths),
    )


def _kind(tensors: TensorSet, config_dir: Path) -> Kind | str:
    """What the tensors are; in words where their architecture is none that is bundled."""
    try:
        return detect(tensors.shapes(), tensors.dtypes(), config_dir)
    except CheckpointError:
        pass
    try:
        return f"{title(part_of(list(tensors.shapes())))} of another size"
    except CheckpointError:
        return "not known"


def _title(kind: Kind) -> str:
    words = [title(kind.part), *([kind.architecture] if kind.part != "lora" else [])]
    return ", ".join([" ".join(words), kind.layout, *([kind.quantised] if kind.quantised else [])])
