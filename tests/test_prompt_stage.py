"""The prompt stage of a job: which of its files the language model is shown, and what becomes of the answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_service import ChatService, chat_service, completion
from media_samples import make_audio, make_clip, make_image
from queue_fixtures import make_job, make_settings
from tiny_checkpoint import CONCAT, TinyModel
from wan_pipelines.renderer import Renderer
from wan_pipelines.tiny import TinySpec
from wan_server.files import FileStore
from wan_server.job import Job
from wan_server.progress import Pace, Reporter
from wan_server.prompt_texts import system_prompt
from wan_server.renderers import Renderers
from wan_server.stages import Stages

pytest_plugins = ("pipeline_fixtures",)


@pytest.fixture
def stages(tiny: Callable[[TinySpec], TinyModel], tmp_path: Path) -> Callable[[ChatService], Stages]:
    """Stages with a miniature, which only plans here."""
    model = tiny(CONCAT)
    renderers = Renderers({"tiny": Renderer(model.profile, model.checkpoint, torch.device("cpu"))})

    def make(service: ChatService) -> Stages:
        settings = make_settings(tmp_path / "data", prompt_extend_url=service.url, prompt_extend_model="some-vl")
        settings.data_dir.mkdir(exist_ok=True)
        return Stages(settings, FileStore(settings), renderers)

    return make


def job_on(stages: Stages, files: dict[str, Path], **given: Any) -> Job:
    stored = {role: stages.files.ingest(path, filename=path.name, content_type=None).id for role, path in files.items()}
    wish = {"prompt": "a sea", "resolution": "720P", "duration": 5, "prompt_extend": True}
    return make_job(files=stored, input=wish | given)


def extended(stages: Stages, job: Job, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    prepared = stages.prepare(job, reporter("prepare"))
    return stages.prompt(job, prepared, reporter("prompt", check))


def reporter(phase: str, check: Callable[[], None] = lambda: None) -> Reporter:
    return Reporter(phase, lambda event: None, check, Pace())


def test_the_model_is_shown_what_the_job_has(stages: Callable[[ChatService], Stages], tmp_path: Path):
    picture, sound = make_image(tmp_path / "a.png", format="PNG"), make_audio(tmp_path / "a.wav")
    clip = make_clip(tmp_path / "a.mp4", (320, 240), 2.0, 10)
    jobs: list[tuple[dict[str, Path], Any, int, str]] = [
        ({}, "text", 0, "Length: 5 s."),
        ({"first_frame": picture, "driving_audio": sound}, "first frame", 1, "Length: 5 s."),
        ({"first_frame": picture, "last_frame": picture}, "first+last frame", 2, "Length: 5 s."),
        ({"first_clip": clip}, "continuation", 2, "Length: 3 s."),
        ({"first_clip": clip, "last_frame": picture}, "continuation", 3, "Length: 3 s."),
    ]
    with chat_service(completion("a wide, calm sea")) as service:
        made = stages(service)
        for files, task, pictures, length in jobs:
            said = extended(made, job_on(made, files))
            assert (said["prompt"], said["applied"], said["model"]) == ("a wide, calm sea", True, "some-vl")
            system, content = service.messages()
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            assert system == system_prompt("en", task)
            assert [part["type"] for part in parts].count("image_url") == pictures
            assert parts[-1]["text"] == f"{length} Wish: a sea"
        assert len(service.asked) == len(jobs)


def test_a_prompt_that_shall_stay_is_shown_to_nobody(stages: Callable[[ChatService], Stages], tmp_path: Path):
    with chat_service(completion("other")) as service:
        made = stages(service)
        job = job_on(made, {"first_frame": make_image(tmp_path / "a.png", format="PNG")}, prompt_extend=False)
        assert extended(made, job)["prompt"] == "a sea"
        assert service.asked == []


def test_an_empty_prompt_is_made_up_from_the_picture(stages: Callable[[ChatService], Stages], tmp_path: Path):
    with chat_service(completion("水面轻轻荡漾")) as service:
        made = stages(service)
        picture = make_image(tmp_path / "a.png", format="PNG")
        job = job_on(made, {"first_frame": picture}, prompt="", negative_prompt="模糊")
        assert extended(made, job)["prompt"] == "水面轻轻荡漾"
        assert service.messages()[0] == system_prompt("zh", "empty")


class Cancelled(BaseException):
    """As the workflow's own."""


def test_a_cancel_ends_the_call(stages: Callable[[ChatService], Stages]):
    with chat_service(b"", silent=True) as service:

        def check() -> None:
            if service.arrived.is_set():
                raise Cancelled

        made = stages(service)
        with pytest.raises(Cancelled):
            extended(made, job_on(made, {}), check)
        assert service.hung_up.wait(5)
