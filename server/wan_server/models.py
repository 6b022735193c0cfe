"""Tables for the command line: profiles with what this machine can run, and API keys."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Column, Table

from wan_pipelines.profile import Profile, checkpoint_folder, list_profiles
from wan_server.settings import Settings

if TYPE_CHECKING:
    from wan_server.keys import KeyRecord

SMI_TIMEOUT_S: Final = 10


def print_models(settings: Settings) -> None:
    """One row per profile."""
    memory = gpu_memory_gib()
    table = Table(
        Column("model", no_wrap=True), "weights", "licence", "takes", "up to", "installed", "this machine", box=None
    )
    for profile in list_profiles(settings.configs):
        table.add_row(
            profile.name,
            profile.weights,
            profile.licence,
            ", ".join((*profile.inputs, *(["text alone"] if profile.text_only else []))),
            f"{profile.max_seconds} s",
            installed(profile, checkpoint_folder(profile, settings.weights, settings.configs)),
            verdict(profile, memory),
        )
    Console().print(table)


def installed(profile: Profile, folder: Path) -> str:
    """Whether the weights lie in `folder`, where the worker looks for them."""
    is_there = (folder / "model_index.json").is_file()
    if profile.weights_from == "repository":
        return "yes" if is_there else f"no: put {profile.repository} in {folder}"
    if profile.weights_from == "shipped" and not is_there:
        return f"no: {folder} is missing from the installation"
    return "built in"


def verdict(profile: Profile, gpus_gib: list[float]) -> str:
    """Whether this machine can run the profile, with the numbers."""
    if profile.gpu_gib == 0:
        return "yes"
    best = max(gpus_gib, default=0.0)
    if best >= profile.gpu_gib:
        return f"yes ({best:.0f} GiB GPU)"
    has = f"has {best:.0f} GiB" if best else "has none"
    return f"no: needs a GPU with {profile.gpu_gib:.0f} GiB, {has}"


def gpu_memory_gib() -> list[float]:
    """Memory of each NVIDIA GPU, asked of the driver's own tool; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
    if done.returncode != 0:
        return []
    return [float(line) / 1024 for line in done.stdout.splitlines() if line.strip()]


def print_keys(records: list[KeyRecord]) -> None:
    """One row per key; the secret is not known here."""
    table = Table(Column("id", no_wrap=True), "name", "begins with", "created", "last used", "revoked", box=None)
    for record in records:
        stamps = (record.created_at, record.last_used_at, record.revoked_at)
        table.add_row(record.id, record.name, record.prefix, *(_day(stamp) for stamp in stamps))
    Console().print(table)


def _day(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
