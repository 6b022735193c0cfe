"""What several test modules share: one running server, one picture, one web site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_site import LocalSite, serving
from media_samples import make_image
from server_process import Server, running_server, tail


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a running server begin, then those with slow tests.

    The processes of `make test` take file after file in this order, so none is left with a long one at the end.
    """
    served = {item.path for item in items if "server" in getattr(item, "fixturenames", ())}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in served, item.path not in slow))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`wanbox serve` with a worker, up for the whole run."""
    with running_server(tmp_path_factory.mktemp("server") / "data") as running:
        yield running


@pytest.fixture(autouse=True)
def _server_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """Adds the server's last lines to the output that pytest shows for a failed test."""
    running = request.getfixturevalue("server") if "server" in request.fixturenames else None
    yield
    if running is not None:
        print(f"--- last lines of the server\n{tail(running.log)}")  # noqa: T201


@pytest.fixture(scope="session")
def first_frame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 16:9 picture on disk."""
    return make_image(tmp_path_factory.mktemp("frames") / "first.png", (640, 360), "PNG")


@pytest.fixture(scope="session")
def site(first_frame: Path) -> Iterator[LocalSite]:
    """A web site with a good and a broken picture, and room for webhooks."""
    pages = {
        "/first.png": ("image/png", first_frame.read_bytes()),
        "/broken.png": ("image/png", b"\x89PNG\r\n\x1a\nno picture after all"),
    }
    site = LocalSite(pages)
    with serving(site):
        yield site
