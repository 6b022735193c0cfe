"""Weight files in a folder: which there are, which belong together, and which is a preset's LoRA. Names only. No torch.

The loader, `wanbox weights check` and `convert`, and a server that asks what is installed all look here, so that they
see the same files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from wan_pipelines.errors import CheckpointError
from wan_pipelines.preset import LoraFile
from wan_pipelines.weights.kinds import some

#: what `torch.save` writes
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
#: ends of the names of weight files, in lower case
FORMATS = (".safetensors", ".gguf", *PICKLES)
#: folders below the given one that are looked into
DEPTH = 3
SHARD = re.compile(r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")
#: one file for each block, as lightx2v writes them for loading block by block
BLOCK = re.compile(r"non_block|block_\d+")


def weight_files(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Weight files in a folder and the folders below, in order; nothing hidden, nothing where there is no folder."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and depth:
            yield from weight_files(entry, depth - 1)
        elif is_weight_file(entry):
            yield entry


def is_weight_file(path: Path) -> bool:
    """Whether a path is a file of a format that is read."""
    return path.suffix.lower() in FORMATS and path.is_file()


def by_model(paths: Iterable[Path]) -> list[list[Path]]:
    """The files of each model together: its shards, its blocks, or the only one."""
    groups: dict[tuple[Path, str, str], list[Path]] = {}
    for path in paths:
        shard = SHARD.fullmatch(path.stem)
        model = shard["model"] if shard else "block" if BLOCK.fullmatch(path.stem) else path.name
        groups.setdefault((path.parent, model, path.suffix.lower()), []).append(path)
    return list(groups.values())


def where(paths: Sequence[Path]) -> Path:
    """What to call a model: its file, or the folder of its shards."""
    return paths[0] if len(paths) == 1 else paths[0].parent


def check_shards(paths: Sequence[Path]) -> None:
    """Raises CheckpointError naming the first shard of a model that is not there."""
    numbered = [(path, shard) for path in paths if (shard := SHARD.fullmatch(path.stem))]
    if not numbered:
        return
    path, shard = numbered[0]
    here = {int(other["number"]) for _, other in numbered}
    for number in range(1, int(shard["total"]) + 1):
        if number not in here:
            name = f"{shard['model']}-{number:05d}-of-{shard['total']}{path.suffix}"
            raise CheckpointError(f"{path.parent / name} is missing, but other shards of it are there")


def lora_candidates(lora: LoraFile, folder: Path) -> list[Path]:
    """Files that may be a LoRA: where `wanbox weights get` puts it, else by its path, else by its name."""
    if (usual := lora.path_in(folder)).is_file():
        return [usual]
    wanted = PurePosixPath(lora.file)
    named = [path for path in sorted(folder.rglob(wanted.name)) if path.is_file()]
    exact = [path for path in named if path.parts[-len(wanted.parts) :] == wanted.parts]
    return list({path.resolve(): path for path in exact or named}.values())


def find_lora(lora: LoraFile, folder: Path) -> Path | None:
    """The file of a LoRA anywhere below a folder. Raises CheckpointError when several could be it."""
    found = lora_candidates(lora, folder)
    if len(found) > 1:
        raise CheckpointError(f"{folder}: several files could be {lora.file}: {some(map(str, found))}")
    return next(iter(found), None)
