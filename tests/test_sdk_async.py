"""The official asynchronous Python client against a real server."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from inferencesh import AsyncInference
from inferencesh.client import AsyncTaskStream
from inferencesh.models.errors import APIError

from local_site import LocalSite
from sdk_input import CANCELLED, COMPLETED, QUEUED, RUNNING, TERMINAL, check_video, later, request
from server_process import Server

Scenario = Callable[[AsyncInference], Awaitable[Any]]


@pytest.fixture
def play(server: Server) -> Callable[[Scenario], Any]:
    """Runs a scenario with a client of its own and an event loop of its own."""

    async def timed(scenario: Scenario) -> Any:
        return await asyncio.wait_for(scenario(AsyncInference(api_key="any", base_url=server.base_url)), timeout=60)

    return lambda scenario: asyncio.run(timed(scenario))


async def run(client: AsyncInference, params: dict[str, Any], **options: Any) -> dict[str, Any]:
    task = await client.run(params, **options)
    assert isinstance(task, dict)
    return task


async def ended(client: AsyncInference, task_id: str) -> dict[str, Any]:
    while (task := (await client.tasks.get(task_id)).data)["status"] not in TERMINAL:
        await asyncio.sleep(0.05)
    return task


async def cancel_when_running(client: AsyncInference, task_id: str) -> None:
    async for update in client.stream_task(task_id):
        if update["status"] == RUNNING:
            await client.tasks.cancel(task_id)


def test_run_uploads_a_local_path_and_returns_the_video(play, first_frame: Path, tmp_path: Path):
    task = play(lambda client: run(client, request(first_frame)))
    assert task["status"] == COMPLETED
    check_video(task["output"], tmp_path)


def test_stream_yields_progress_then_the_result(play, first_frame: Path):
    picture = base64.b64encode(first_frame.read_bytes()).decode()

    async def scenario(client: AsyncInference):
        stream = await client.run(request(f"data:image/png;base64,{picture}"), stream=True)
        assert isinstance(stream, AsyncTaskStream)
        return [update async for update in stream]

    updates = play(scenario)
    statuses = [update["status"] for update in updates]
    assert statuses == sorted(statuses)
    assert RUNNING in statuses
    assert statuses[-1] == COMPLETED
    lines = [line["content"] for update in updates for line in update["logs"] or []]
    assert any(re.search(r"\d+ of \d+", line) for line in lines), lines


def test_get_and_cancel_while_queued(play, first_frame: Path):
    async def scenario(client: AsyncInference):
        created = await run(client, request(first_frame, run_at=later(3600)), wait=False)
        before = (await client.tasks.get(created["id"])).data
        await client.tasks.cancel(created["id"])
        after = (await client.tasks.get(created["id"])).data
        with pytest.raises(RuntimeError, match="task cancelled"):
            await client.wait_for_completion(created["id"])
        return before, after

    before, after = play(scenario)
    assert (before["status"], after["status"]) == (QUEUED, CANCELLED)


def test_cancel_while_running(play, first_frame: Path):
    params = request(first_frame)
    params["input"]["duration"] = 15

    async def scenario(client: AsyncInference):
        created = await run(client, params, wait=False)
        with pytest.raises(RuntimeError, match="task cancelled"):
            await cancel_when_running(client, created["id"])
        return await ended(client, created["id"])

    task = play(scenario)
    assert (task["status"], task["output"]) == (CANCELLED, None)


def test_upload_then_run_with_the_uri(play, first_frame: Path):
    async def scenario(client: AsyncInference):
        uploaded = await client.files.upload(str(first_frame))
        created = await run(client, request(uploaded["uri"], run_at=later(3600)), wait=False)
        task = (await client.tasks.get(created["id"])).data
        await client.tasks.cancel(created["id"])
        return uploaded, task

    uploaded, task = play(scenario)
    assert httpx.get(uploaded["uri"]).content == first_frame.read_bytes()
    assert task["input"]["first_frame"] == uploaded["uri"]


def test_a_remote_file_that_is_no_picture_fails_the_task(play, site: LocalSite):
    with pytest.raises(RuntimeError, match=r"input\.first_frame: "):
        play(lambda client: run(client, request(f"{site.url}/broken.png")))


def test_bad_input_is_refused_with_the_field_and_the_limit(play, first_frame: Path):
    params = request(first_frame)
    params["input"]["duration"] = 20
    with pytest.raises(APIError) as refusal:
        play(lambda client: run(client, params))
    assert refusal.value.status_code == 422
    assert "input.duration: must be at most 15 (got 20)" in str(refusal.value)


def test_webhook_gets_the_result(play, site: LocalSite):
    params = request(f"{site.url}/first.png", webhook=f"{site.url}/hook")
    task = play(lambda client: run(client, params))
    posted = site.posts.get(timeout=20)
    assert (posted["id"], posted["status"]) == (task["id"], COMPLETED)
    assert posted["output"] == task["output"]


def test_a_new_session_gets_an_id(play, first_frame: Path):
    async def scenario(client: AsyncInference):
        created = await run(client, request(first_frame, session="new", run_at=later(3600)), wait=False)
        await client.tasks.cancel(created["id"])
        return created

    assert play(scenario)["session_id"]
