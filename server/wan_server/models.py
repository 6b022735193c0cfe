"""Tables for the command line: profiles with what this machine can run, and API keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Column, Table

from wan_pipelines.errors import PlacementError
from wan_pipelines.footprint import bundled_configs, footprint
from wan_pipelines.placement import reach
from wan_pipelines.profile import Profile, checkpoint_folder, list_profiles
from wan_server.choice import SHORTEST_CLIP_S, abilities
from wan_server.media import COMBINATIONS
from wan_server.served import gpu_memory_gib, has_weights, served_profiles, settle
from wan_server.settings import Settings

if TYPE_CHECKING:
    from wan_server.keys import KeyRecord

GIB: Final = 2**30


def print_models(settings: Settings) -> None:
    """One row per profile and preset, then what the configured set can do. Raises ProfileError, SettingsError."""
    console = Console()
    memory = gpu_memory_gib()
    table = Table(
        Column("model", no_wrap=True), "weights", "licence", "takes", "up to", "installed", "this machine", box=None
    )
    for profile in list_profiles(settings.configs):
        for version in (profile, *(profile.with_preset(name) for name in profile.presets)):
            table.add_row(
                version.served_as,
                version.weights,
                version.licence,
                takes(version),
                f"{version.max_seconds} s",
                installed(version, checkpoint_folder(version, settings.weights, settings.configs)),
                verdict(version, memory, settings),
            )
    console.print(table)
    console.print(f"\nWeights belong in {settings.weights}/<model>.", markup=False, highlight=False)
    served = served_profiles(settle(settings))
    names = ", ".join(profile.served_as for profile in served)
    console.print(f"This server is configured for {names} (WANBOX_MODELS):", markup=False, highlight=False)
    for line in said_abilities(served):
        console.print(f"  {line}", markup=False, highlight=False)


def said_abilities(served: tuple[Profile, ...]) -> list[str]:
    """One line for each combination of inputs that the app knows."""
    lines = []
    for ability in abilities(served, COMBINATIONS | {frozenset()}):
        models = ", ".join(f"{model} up to {seconds} s" for model, seconds in ability["models"].items())
        behind = f" behind a clip of {SHORTEST_CLIP_S:g} s" if models and "first_clip" in ability["inputs"] else ""
        said = models + behind if models else f"no: {ability['why_not']}"
        inputs = " + ".join(ability["inputs"]) or "text alone"
        note = f"; {ability['note']}" if "note" in ability else ""
        lines.append(f"{inputs}: {said}{note}")
    return lines


def takes(profile: Profile) -> str:
    """The inputs that a model listens to."""
    needed = {role: f"{role} (needed)" for role in profile.needs}
    roles = [needed.get(role, role) for role in profile.inputs]
    return ", ".join([*roles, *(["text alone"] if profile.text_only else [])])


def installed(profile: Profile, folder: Path) -> str:
    """Whether the weights lie in `folder`, where the worker looks for them."""
    is_there = has_weights(profile, folder)
    if profile.own_weights:
        return "bring your own" + (f"; weights are in {folder}" if is_there else "")
    if profile.weights_from == "repository":
        size = profile.disk_gb + sum(lora.disk_gb for lora in profile.loras)
        return "yes" if is_there else f"no: wanbox weights get {profile.served_as} ({size:.0f} GB)"
    if profile.weights_from == "shipped" and not is_there:
        return f"no: {folder} is missing from the installation"
    return "built in"


def verdict(profile: Profile, gpus_gib: list[float], settings: Settings) -> str:
    """Whether this machine can run the profile, how its weights would be kept, and the numbers."""
    if profile.cannot_run:
        return f"no: {profile.cannot_run}"
    if profile.gpu_gib == 0:
        return "yes"
    if not gpus_gib:
        return f"no: needs a GPU with {profile.gpu_gib_least:.0f} GiB, has none"
    best = max(gpus_gib)
    try:
        counted = footprint(bundled_configs(profile, settings.configs), profile, "bfloat16")
        found = reach(counted, profile, "720P", int(best * GIB), None, settings.placement)
    except PlacementError as error:
        if settings.placement != "auto":
            return f"no: {error}"
        return f"no: needs a GPU with {profile.gpu_gib_least:.0f} GiB, has {best:.0f} GiB"
    length = f", up to {found.seconds} s" if found.seconds < profile.max_seconds else ""
    return f"yes, {found.placement.mode}{length} ({best:.0f} GiB GPU; {profile.gpu_gib:.0f} GiB would hold all)"


def print_keys(records: list[KeyRecord]) -> None:
    """One row per key; the secret is not known here."""
    table = Table(Column("id", no_wrap=True), "name", "begins with", "created", "last used", "revoked", box=None)
    for record in records:
        stamps = (record.created_at, record.last_used_at, record.revoked_at)
        table.add_row(record.id, record.name, record.prefix, *(_day(stamp) for stamp in stamps))
    Console().print(table)


def _day(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
