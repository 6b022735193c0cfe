"""The command line: `wanbox serve | worker | render | models | weights | keys`. Commands import only what they need."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from wan_server.settings import Settings, SettingsError, as_environment, load_settings
from wan_server.weights_cli import weights_app

app = typer.Typer(
    name="wanbox",
    help="Run the open Wan video models behind the API of the hosted app alibaba/wan-2-7-i2v.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
keys_app = typer.Typer(help="API keys: without any, only this machine may use the server.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(weights_app, name="weights")

DataDir = Annotated[Path | None, typer.Option(help="Folder of the database, the files and the weights. [./data]")]
Models = Annotated[
    str | None,
    typer.Option(
        "--models",
        "--model",
        help="Profiles to serve as NAME[:PRESET], comma-separated, the preferred one first; or auto. [tiny]",
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda. [auto]")]
OutputFps = Annotated[str | None, typer.Option("--fps", help="Frames per second: native, 24 or 30. [native]")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. [8000]")] = None,
    data_dir: DataDir = None,
    models: Models = None,
    device: Device = None,
    worker: Annotated[bool, typer.Option(help="Run a worker beside the front end.")] = True,
) -> None:
    """Run the HTTP front end and, unless --no-worker is given, a supervised worker."""
    given = {"host": host, "port": port, "data_dir": data_dir, "models": models, "device": device}
    with _explained():
        from wan_server.serve import serve as run
        from wan_server.served import settle

        settings = settle(_settings(**given), with_worker=worker)
        resolved = {"models": settings.models, "data_dir": settings.data_dir.resolve()}
        environment = {**os.environ, **as_environment({**given, **resolved})}
        raise typer.Exit(run(settings, environment, with_worker=worker))


@app.command()
def worker(
    name: Annotated[str | None, typer.Option(help="Stays the same over restarts. [HOST-0]")] = None,
    data_dir: DataDir = None,
    models: Models = None,
    device: Device = None,
    supervised: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run a worker alone, against the database and store of the settings."""
    with _explained():
        settings = _settings(data_dir=data_dir, models=models, device=device)
    from wan_server.worker import leave, run_worker
    from wan_server.worker_process import default_name

    status = 1
    try:
        status = run_worker(settings, name or default_name(), supervised=supervised)
    finally:
        leave(status)


@app.command()
def render(
    jobs: Annotated[Path, typer.Argument(help="INPUT.json with one input, or JOBS.jsonl with one per line.")],
    out: Annotated[Path, typer.Option(help="Folder for the videos and their manifests.")],
    data_dir: DataDir = None,
    models: Models = None,
    device: Device = None,
    output_fps: OutputFps = None,
) -> None:
    """Render inputs without a server. Run it again to go on: what is done is skipped, what failed is tried again."""
    with _explained():
        usual = load_settings(data_dir=data_dir)
        is_given = data_dir is not None or "data_dir" in usual.model_fields_set
        given = {
            "data_dir": usual.data_dir if is_given else out / ".wanbox",
            "weights_dir": usual.weights.resolve(),
            "models": models,
            "device": device,
            "output_fps": output_fps,
        }
        from wan_server.render import render as run
        from wan_server.served import settle

        settings = settle(_settings(**given))
        resolved = {"models": settings.models, "data_dir": settings.data_dir.resolve()}
        environment = {**os.environ, **as_environment({**given, **resolved})}
        raise typer.Exit(run(settings, environment, jobs, out))


@app.command()
def models(data_dir: DataDir = None, models: Models = None) -> None:
    """List the profiles, what is installed, what this machine can run, and what the configured ones do."""
    with _explained():
        from wan_server.models import print_models

        print_models(_settings(data_dir=data_dir, models=models))


@keys_app.command("create")
def keys_create(name: str, data_dir: DataDir = None) -> None:
    """Make a key. It is shown once."""
    with _explained():
        token, record = _key_store(data_dir).create(name)
        typer.echo(f"{token}\n\nkept as {record.id} ({record.name}); the key itself is not stored and not shown again")


@keys_app.command("list")
def keys_list(data_dir: DataDir = None) -> None:
    """List the keys, without their secrets."""
    with _explained():
        from wan_server.models import print_keys

        print_keys(_key_store(data_dir).list())


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="Id of the key, or its beginning.")], data_dir: DataDir = None
) -> None:
    """Take a key back. Requests with it are refused from now on."""
    with _explained():
        record = _key_store(data_dir).revoke(key)
        typer.echo(f"revoked {record.id} ({record.name})")


def _settings(**given: Any) -> Settings:
    settings = load_settings(**given)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for chatty in ("dbos", "httpx", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"WANBOX_DATA_DIR: cannot be used ({error})") from None
    if not os.access(settings.data_dir, os.W_OK):
        raise SettingsError(f"WANBOX_DATA_DIR: cannot be written ({settings.data_dir})")
    return settings


def _key_store(data_dir: Path | None) -> Any:
    from wan_server.keys import KeyStore
    from wan_server.tables import make_engine

    return KeyStore(make_engine(_settings(data_dir=data_dir).database))


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the user can mend into a clear line and exit status 2."""
    from wan_pipelines.errors import PipelineError
    from wan_server.errors import WanboxError

    try:
        yield
    except (SettingsError, WanboxError, PipelineError) as error:
        typer.secho(f"wanbox: {error}", fg="red", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
