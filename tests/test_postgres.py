"""A server on PostgreSQL, in a database that WANBOX_TEST_POSTGRES_URL names and the test may write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from inferencesh import Inference

from sdk_input import CANCELLED, COMPLETED, check_video, later, request
from server_process import running_server

URL = os.environ.get("WANBOX_TEST_POSTGRES_URL", "")

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not URL, reason="WANBOX_TEST_POSTGRES_URL names no PostgreSQL database to write to"),
]


def test_jobs_run_wait_and_are_cancelled_on_postgresql(first_frame: Path, tmp_path: Path):
    with running_server(tmp_path / "data", settings={"WANBOX_DATABASE_URL": URL}) as server:
        client = Inference(api_key="any", base_url=server.base_url)
        waiting = client.run(request(first_frame, run_at=later(3600)), wait=False)
        task = client.run(request(first_frame))
        assert isinstance(waiting, dict)
        assert isinstance(task, dict)
        assert task["status"] == COMPLETED
        check_video(task["output"], tmp_path)
        client.tasks.cancel(waiting["id"])
        assert client.tasks.get(waiting["id"]).data["status"] == CANCELLED
        assert not list((tmp_path / "data").glob("*.db"))
