"""`wanbox serve`: the front end under uvicorn, with a supervised worker beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import FrameType

import uvicorn
from fastapi import FastAPI

from wan_server.app import build_app
from wan_server.auth import require_keys_unless_loopback
from wan_server.keys import KeyStore
from wan_server.settings import Settings
from wan_server.supervisor import Supervisor
from wan_server.tables import make_engine
from wan_server.worker_process import default_name

logger = logging.getLogger(__name__)

#: seconds that open connections get at a shutdown
GRACE_S = 3


class DrainingServer(uvicorn.Server):
    """Tells the open streams that the server is going, before uvicorn starts to wait for them."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self.app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.draining.set()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # uvicorn would raise it again at the end, and the worker would be left behind


def serve(settings: Settings, environment: Mapping[str, str], *, with_worker: bool) -> int:
    """Run until a signal. Returns the exit status. Raises WanboxError when the settings do not allow the start.

    The environment is the worker's; it must name the same models as the settings.
    """
    require_keys_unless_loopback(settings, KeyStore(make_engine(settings.database)))
    app = build_app(settings)
    supervisor = Supervisor(default_name(), environment) if with_worker else None
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=settings.log_level == "DEBUG",
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    if supervisor is not None:
        app.state.worker_trouble = lambda: supervisor.given_up
        supervisor.start()
    try:
        DrainingServer(config, app).run()
    finally:
        if supervisor is not None:
            supervisor.stop()
    return 0
