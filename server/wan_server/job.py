"""The nouns of the queue: what is enqueued (Job), what the worker reports (Event), what readers see (JobState)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from wan_server.status import TaskStatus


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request, resolved far enough to run without the caller. The workflow's only argument."""

    id: str
    app: str
    model: str
    #: the caller's input with defaults filled in; inline media replaced by our file uri
    input: dict[str, Any]
    #: media role -> file id, for media that lies in the store
    files: dict[str, str]
    #: media role -> http(s) URL that the worker fetches
    remote: dict[str, str]
    #: the seed that is used, drawn at submission when the caller gave none
    seed: int
    #: absolute base of every link, no trailing slash
    base_url: str
    #: epoch seconds of the submission
    created_at: float
    #: sentences for output_meta
    not_honoured: tuple[str, ...] = ()
    #: session_id, session_timeout, infra, workers, setup, function, app_version, metadata, webhook, user, run_at;
    #: clip_seconds, where the length of first_clip is known
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Job:
        return cls(**{**data, "not_honoured": tuple(data["not_honoured"])})


@dataclass(frozen=True, slots=True)
class Event:
    """One progress line, written by the worker to the workflow's stream."""

    #: epoch seconds
    at: float
    status: int
    #: start | prepare | prompt | encode | denoise | decode | publish
    phase: str
    text: str
    #: 0-100 over the whole job
    progress: int
    step: int | None = None
    steps: int | None = None
    eta_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Event:
        return cls(**data)


@dataclass(frozen=True, slots=True)
class JobState:
    """What is known of a job, read from the workflow's own records. Times in epoch seconds."""

    job: Job
    status: TaskStatus
    created_at: float
    updated_at: float
    started_at: float | None
    completed_at: float | None
    output: dict[str, Any] | None
    error: str | None
    events: tuple[Event, ...]
    #: times a worker has taken it
    attempts: int
    #: 0-100
    progress: int
    #: jobs that come first; None unless queued
    position: int | None
    eta_s: float | None
    worker_id: str | None


@dataclass(frozen=True, slots=True)
class JobPage:
    items: list[JobState]
    next_cursor: str | None
