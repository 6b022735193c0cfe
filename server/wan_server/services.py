"""Everything that a request handler works with, made once per application."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

from wan_server.apps import Catalog
from wan_server.auth import UploadSigner
from wan_server.files import FileStore
from wan_server.keys import KeyStore
from wan_server.settings import Settings
from wan_server.stream import Pace, Rhythm
from wan_server.submit import Submitter

if TYPE_CHECKING:
    from wan_server.queue import JobQueue


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the front end."""

    settings: Settings
    queue: JobQueue
    files: FileStore
    keys: KeyStore
    catalog: Catalog
    submitter: Submitter
    signer: UploadSigner
    pace: Pace
    #: set when the server shuts down: streams and waits end
    draining: Event

    @property
    def rhythm(self) -> Rhythm:
        return Rhythm(self.settings.stream_poll_s, self.settings.stream_keepalive_s)
