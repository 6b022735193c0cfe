"""The front end as an ASGI application. Makes no connection to a model and imports no tensors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event
from typing import TYPE_CHECKING

from fastapi import FastAPI
from sqlalchemy import Engine

from wan_server import __version__
from wan_server.apps import Catalog
from wan_server.auth import UploadSigner
from wan_server.envelope import install_errors
from wan_server.files import FileStore
from wan_server.keys import KeyStore
from wan_server.middleware import install_middleware
from wan_server.openapi import documented
from wan_server.routes import apps, files, health, sessions, tasks
from wan_server.served import served_profiles, settle
from wan_server.services import Services
from wan_server.settings import Settings
from wan_server.stream import Pace
from wan_server.submit import Submitter
from wan_server.tables import server_secret

if TYPE_CHECKING:
    from wan_server.queue import JobQueue

DESCRIPTION = (
    "Speaks the protocol of the hosted apps alibaba/wan-2-7-i2v and alibaba/wan-2-7-t2v, "
    "with open Wan weights behind it."
)


def create_app(
    settings: Settings, queue: JobQueue, files_store: FileStore, engine: Engine, pace: Pace | None = None
) -> FastAPI:
    """The application on parts that are at hand. `app.state.draining` is an Event that ends streams when set."""
    app = FastAPI(
        title="wanbox",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = make_services(settings, queue, files_store, engine, pace or Pace())
    app.state.draining = app.state.services.draining
    app.state.worker_trouble = lambda: None  # why there is no worker and will be none; `serve` knows
    install_errors(app)
    install_middleware(app, settings)
    for module in (health, apps, tasks, files, sessions):
        app.include_router(module.router)
    app.openapi = documented(app)
    return app


def build_app(settings: Settings) -> FastAPI:
    """The application on the database and the store that the settings name; closes them at shutdown."""
    from wan_server.queue import JobQueue

    settings = settle(settings)
    queue = JobQueue(settings)
    app = create_app(settings, queue, FileStore(settings, queue.engine), queue.engine)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app.router.lifespan_context = lifespan
    return app


def make_services(settings: Settings, queue: JobQueue, files_store: FileStore, engine: Engine, pace: Pace) -> Services:
    """Everything that the handlers work with. Raises ProfileError when a configured model has no profile."""
    catalog = Catalog(served_profiles(settings), output_fps=settings.frame_rate)
    return Services(
        settings=settings,
        queue=queue,
        files=files_store,
        keys=KeyStore(engine),
        catalog=catalog,
        submitter=Submitter(settings, queue, files_store, catalog, server_secret(engine, "idempotency")),
        signer=UploadSigner(server_secret(engine, "uploads"), settings.upload_url_ttl_s),
        pace=pace,
        draining=Event(),
    )
