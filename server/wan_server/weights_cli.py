"""`wanbox weights get | check | convert`. What it prints; the work is done in `wan_pipelines.weights`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from wan_pipelines.errors import PipelineError
from wan_pipelines.profile import QUALITY, Profile, checkpoint_folder, load_profile
from wan_server.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from rich.progress import Progress

    from wan_pipelines.weights.check import Report
    from wan_pipelines.weights.download import Download
    from wan_pipelines.weights.hub import Hub

weights_app = typer.Typer(
    help="Fetch, examine and shrink the weights of a model; see docs/weights.md.", no_args_is_help=True
)

EXIT_PROBLEMS: Final = 1
EXIT_REFUSED: Final = 2
EXIT_INTERRUPTED: Final = 130
GB: Final = 1e9


class LayoutName(StrEnum):
    """Layouts that repositories come in."""

    DIFFUSERS = "diffusers"
    ORIGINAL = "original"


class DtypeName(StrEnum):
    """What weights can be converted to."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FP8 = "fp8"


DataDir = Annotated[Path | None, typer.Option(help="Folder of the database, the files and the weights. [./data]")]


@weights_app.command()
def get(
    model: Annotated[str, typer.Argument(metavar="PROFILE[:PRESET]", help="As `wanbox models` lists them.")],
    preset: Annotated[str | None, typer.Option(help="The preset, when it is not part of the name.")] = None,
    layout: Annotated[LayoutName | None, typer.Option(help="Of the repository. Default: diffusers, if known.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Download a model's weights. Interrupted, the same command goes on where it stopped."""
    with _explained():
        settings = load_settings(data_dir=data_dir)
        profile = _profile(model, preset, settings)
        from wan_pipelines.weights.download import plan_download
        from wan_pipelines.weights.hub import Hub

        folder = checkpoint_folder(profile, settings.weights, settings.configs)
        hub = Hub()
        download = plan_download(profile, layout.value if layout else None, folder, hub)
        if download.is_done:
            typer.echo(f"{folder}: {_why_done(download)}")
            return
        _show(profile, download, hub.endpoint)
        if download.bytes_to_write <= download.bytes_free and not (yes or typer.confirm("Download?")):
            typer.echo("nothing was downloaded")
            raise typer.Exit(EXIT_PROBLEMS)
        _run(download, hub)
        typer.echo(f"{folder}: complete and verified")


@weights_app.command()
def check(
    what: Annotated[str, typer.Argument(metavar="DIR|PROFILE", help="A folder, a file, or an installed profile.")],
    deep: Annotated[bool, typer.Option(help="Read every tensor and look for NaN and infinity.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Say what a folder holds, which profiles it serves, and what is missing. Exit status 1 on problems."""
    with _explained():
        settings = load_settings(data_dir=data_dir)
        place, profile = _place(what, settings)
        from wan_pipelines.weights.check import examine, look_deep

        report = examine(place, settings.configs, profile)
        _print_parts(report)
        problems = list(report.problems)
        if deep:
            with _progress() as progress:
                bar = progress.add_task("reading tensors", total=report.size)
                problems += look_deep(place, lambda size: progress.advance(bar, size))
        for problem in problems:
            typer.secho(f"problem: {problem}", fg="red")
        raise typer.Exit(EXIT_PROBLEMS if problems else 0)


@weights_app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder in any layout, or one file.", exists=True)],
    target: Annotated[Path, typer.Argument(help="New folder, or new .safetensors file when the source is a file.")],
    dtype: Annotated[DtypeName, typer.Option(help="Of the large matrices.")] = DtypeName.BFLOAT16,
) -> None:
    """Write a smaller copy of a checkpoint, tensor by tensor. Interrupted, the same command goes on."""
    with _explained():
        from wan_pipelines.weights.convert import run_conversion
        from wan_pipelines.weights.convert_plan import plan_conversion

        conversion = plan_conversion(source, target, dtype.value)
        typer.echo(f"{source}: {_gb(conversion.bytes_before)} -> {dtype.value}: {_gb(conversion.bytes_after)}")
        for copied in conversion.kept:
            typer.echo(f"  copied as it is: {copied}")
        with _progress() as progress:
            bar = progress.add_task("converting", total=conversion.bytes_of_tensors)
            run_conversion(conversion, lambda size: progress.advance(bar, size))
        typer.echo(f"{target}: {_gb(conversion.bytes_after)}")


def _profile(model: str, preset: str | None, settings: Settings) -> Profile:
    """`name[:preset]`, with the preset also as an option."""
    name, _, named = model.partition(":")
    if named and preset and named != preset:
        raise SettingsError(f"--preset {preset} contradicts {model}")
    return load_profile(name, settings.configs).with_preset(named or preset or QUALITY)


def _place(what: str, settings: Settings) -> tuple[Path, Profile | None]:
    """The folder that is meant, and the profile when one was named."""
    if Path(what).exists() and ("/" in what or what in (".", "..")):
        return Path(what), None
    name = what.partition(":")[0]
    if not (settings.configs / "models" / f"{name}.toml").is_file() and Path(what).exists():
        return Path(what), None
    profile = _profile(what, None, settings)
    return checkpoint_folder(profile, settings.weights, settings.configs), profile


def _why_done(download: Download) -> str:
    """Why there is nothing to fetch."""
    if not download.is_foreign:
        return f"everything is there already ({_gb(download.total)})"
    loras = f"; the LoRA files of the preset are there ({_gb(download.total)})" if download.listings else ""
    return f"not fetched by wanbox, left as it is{loras}"


def _show(profile: Profile, download: Download, endpoint: str) -> None:
    """What a person wants to know before 100 GB arrive."""
    preset = "" if profile.preset == QUALITY else f", preset {profile.preset}"
    typer.echo(f"{profile.name} ({profile.title}{preset}) from {endpoint}")
    for listing in download.listings:
        licence = listing.licence or "not stated there"
        size = _gb(sum(file.size for file in listing.files))
        typer.echo(f"  {listing.repository} @ {listing.revision[:12]}: {size}, licence {licence}")
    typer.echo(f"  licence of the profile: {profile.licence}")
    if profile.cannot_run:
        typer.secho(f"  cannot run yet: {profile.cannot_run}", fg="yellow")
    typer.echo(f"  into {download.folder}{'' if download.layout else ' (what is there stays)'}")
    found = sum(item.file.size for item in download.missing if item.found)
    here = download.total - download.bytes_to_load
    typer.echo(f"  to download: {_gb(download.bytes_to_load)}; here already: {_gb(here)}, {_gb(found)} of it in caches")
    typer.echo(f"  disk: {_gb(download.bytes_to_write)} needed, {_gb(download.bytes_free)} free")


def _run(download: Download, hub: Hub) -> None:
    from huggingface_hub.utils import disable_progress_bars

    from wan_pipelines.weights.download import run_download

    disable_progress_bars()
    with _progress() as progress:
        bar = progress.add_task("downloading", total=download.bytes_to_load)
        run_download(download, hub, lambda size: progress.advance(bar, size))


def _print_parts(report: Report) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("part", overflow="fold"), "kind", "tensors", "dtypes", "size", box=None)
    for part in report.parts:
        table.add_row(part.where, part.kind, str(part.tensors), ", ".join(part.dtypes), _gb(part.size))
    Console().print(table)
    if report.serves:
        typer.echo(f"serves: {', '.join(report.serves)}")


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


def _gb(size: int) -> str:
    """Decimal, as hubs and disks count; small things in MB."""
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.2f} MB"


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the user can mend into a clear line."""
    try:
        yield
    except (SettingsError, PipelineError) as error:
        typer.secho(f"wanbox: {error}", fg="red", err=True)
        raise typer.Exit(EXIT_REFUSED) from None
    except KeyboardInterrupt:
        typer.secho("wanbox: interrupted; what is done is kept, run it again to go on", fg="red", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
