"""From the body of a run request to an enqueued job. Refuses here whatever can be known to fail; downloads nothing."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from wan_pipelines.profile import Profile
from wan_server import media
from wan_server.appref import AppRef
from wan_server.apps import App, Catalog, check_function
from wan_server.choice import Choice, choose, wish_of
from wan_server.clock import timestamp
from wan_server.errors import Conflict, InvalidInput, InvalidRequest, NotFound, SessionNotFound, TooManyRequests
from wan_server.files import FileStore
from wan_server.ids import derived_id, is_id, new_id
from wan_server.inputs import MediaResolver, Resolved, examine
from wan_server.job import Job, JobState
from wan_server.keys import Principal
from wan_server.schema import MAX_SEED, AppInput, GenerateInput, RunRequest, parse_input, parse_run
from wan_server.settings import Settings
from wan_server.urls import check_url

if TYPE_CHECKING:
    from wan_server.queue import JobQueue

Json = dict[str, Any]

MAX_OPTION_BYTES: Final = 65536
MAX_IDEMPOTENCY_KEY: Final = 255
DEFAULT_SESSION_TIMEOUT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Submission:
    """A request as it came, and who sent it from where."""

    body: object
    base_url: str
    principal: Principal
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Submitter:
    """Validates requests and enqueues jobs."""

    settings: Settings
    queue: JobQueue
    files: FileStore
    catalog: Catalog
    secret: bytes
    clock: Callable[[], float] = time.time

    def submit(self, submission: Submission) -> JobState:
        """Enqueue; or find the job of an earlier request with the same idempotency key.

        Raises InvalidInput, InvalidRequest, NotFound, Conflict, TooManyRequests.
        """
        request = parse_run(submission.body)
        app, ref = self.catalog.named(request.app, request.app_id)
        check_function(request.function)
        job_id = self._job_id(submission)
        fingerprint = _digest(submission.body)
        if submission.idempotency_key is not None and (earlier := self._find(job_id)):
            return _same_request(earlier, fingerprint)
        options, run_at = self._options(request, ref, submission, fingerprint)
        is_delayed = run_at is not None and run_at > self.clock()
        if self.queue.waiting(delayed=is_delayed) >= self.settings.max_queue:
            raise TooManyRequests(f"{self.settings.max_queue} tasks are waiting already; try again later", 30)
        job = self._job(job_id, app, request, submission, options)
        return _same_request(self.queue.submit(job, run_at), fingerprint)

    def _job(self, job_id: str, app: App, request: RunRequest, sent: Submission, options: Json) -> Job:
        resolver = MediaResolver(self.files, sent.base_url, self.settings.allow_private_urls)
        _refuse_uploaded_text(request.input, resolver)
        parsed, notes = parse_input(request.input, app.input)
        check_request(app, parsed, hosted_caps=self.settings.hosted_page_caps)
        choose(self.catalog.profiles, wish_of(parsed, None))
        resolved, choice, facts = self._resolve(resolver, parsed)
        return Job(
            id=job_id,
            app=app.full_name,
            model=choice.profile.served_as,
            input=parsed.model_dump(exclude_none=True) | {item.role: item.uri for item in resolved},
            files={item.role: item.record.id for item in resolved if item.record},
            remote={item.role: item.uri for item in resolved if not item.record},
            seed=secrets.randbelow(MAX_SEED + 1) if parsed.seed is None else parsed.seed,
            base_url=sent.base_url,
            created_at=self.clock(),
            not_honoured=(*notes, *unheard(choice.profile, media_of(parsed))),
            options=options | facts | ({"passed_over": dict(choice.passed_over)} if choice.passed_over else {}),
        )

    def _resolve(self, resolver: MediaResolver, parsed: AppInput) -> tuple[list[Resolved], Choice, Json]:
        """The media, the model for them, and what is known of their length. When anything is refused, none of the
        inline media is kept."""
        with ExitStack() as undo:
            resolved, clip_seconds = [], None
            for role, value in media_of(parsed).items():
                item = resolver.resolve(role, value)
                if item.record and self.files.id_of(value) != item.record.id:
                    undo.callback(self.files.delete, item.record.id)
                if item.record and role == "first_clip":
                    clip_seconds = examine(self.files, self.files.get(item.record.id)).seconds
                resolved.append(item)
            choice = choose(self.catalog.profiles, wish_of(parsed, clip_seconds))
            undo.pop_all()
        return resolved, choice, {} if clip_seconds is None else {"clip_seconds": clip_seconds}

    def _options(
        self, request: RunRequest, ref: AppRef, sent: Submission, fingerprint: str
    ) -> tuple[Json, float | None]:
        """Everything of the request that is not input, checked; and the start time in epoch seconds."""
        run_at = parse_time(request.run_at, "run_at") if request.run_at else None
        if request.webhook:
            check_url(request.webhook, "webhook", allow_private=self.settings.allow_private_urls)
        options = {
            **_session(request),
            "infra": request.infra,
            "workers": request.workers,
            "setup": request.setup,
            "metadata": request.metadata,
            "function": "run",
            "app_version": ref.version or request.version_id,
            "webhook": request.webhook or None,
            "run_at": timestamp(run_at),
            "user": sent.principal.id,
            "fingerprint": fingerprint,
        }
        for name in ("workers", "setup", "metadata", "app_version"):
            if len(json.dumps(options[name])) > MAX_OPTION_BYTES:
                raise InvalidInput(f"{name}: must be at most {MAX_OPTION_BYTES} bytes of JSON")
        return {name: value for name, value in options.items() if value is not None}, run_at

    def _job_id(self, sent: Submission) -> str:
        key = sent.idempotency_key
        if key is None:
            return new_id()
        if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY or not key.isprintable():
            raise InvalidRequest(f"Idempotency-Key: must have 1 to {MAX_IDEMPOTENCY_KEY} printable characters")
        return derived_id("idempotency", self.secret.hex(), sent.principal.id, key)

    def _find(self, job_id: str) -> JobState | None:
        try:
            return self.queue.get(job_id)
        except NotFound:
            return None


def media_of(parsed: AppInput) -> dict[str, str]:
    """Media role -> value, for those that are given."""
    return {role: value for role in media.ROLES if (value := getattr(parsed, role, None)) is not None}


def check_request(app: App, parsed: AppInput, *, hosted_caps: bool) -> None:
    """What is refused whatever the models. Raises InvalidInput naming field and limit."""
    roles = frozenset(media_of(parsed))
    if roles not in app.combinations:
        raise InvalidInput(f"input: {media.check_combination(set(roles))}")
    if hosted_caps and isinstance(parsed, GenerateInput):
        _check_caps(parsed)


def unheard(profile: Profile, given: dict[str, str]) -> tuple[str, ...]:
    """A sentence when the model does not listen to the driving audio."""
    if "driving_audio" not in given or "driving_audio" in profile.inputs:
        return ()
    return (
        f"input.driving_audio: model {profile.name} does not listen to it; it became the sound of the video, "
        "and lips and motion do not follow it",
    )


def parse_time(text: str, field: str) -> float:
    """Epoch seconds of an ISO 8601 time; UTC when it names no zone. Raises InvalidInput."""
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        raise InvalidInput(f"{field}: must be an ISO 8601 time (got {text[:40]!r})") from None


def _check_caps(parsed: GenerateInput) -> None:
    """The two caps in the prose of the hosted page; both are about images."""
    if parsed.resolution == "1080P" and parsed.duration > 10:
        raise InvalidInput(f"input.duration: must be at most 10 with resolution 1080P (got {parsed.duration})")
    if parsed.first_frame and parsed.last_frame and parsed.duration > 5:
        raise InvalidInput(f"input.duration: must be at most 5 with first_frame and last_frame (got {parsed.duration})")


def _refuse_uploaded_text(raw: object, resolver: MediaResolver) -> None:
    """The Python client uploads any text that names a local file or looks like base64, and sends the link."""
    for name in ("prompt", "negative_prompt", "resolution"):
        if isinstance(raw, dict) and resolver.is_own_link(raw.get(name)):
            raise InvalidInput(
                f"input.{name}: is the link of an uploaded file. The Python SDK uploads every text that is the name of "
                "a local file or looks like base64 (16 or more letters without spaces): change the text, or run "
                "from another directory"
            )


def _session(request: RunRequest) -> Json:
    """Ids of sessions are given out and accepted; they bind nothing, because a worker keeps no state."""
    if request.session_timeout is not None and request.session != "new":
        raise InvalidInput('session_timeout: is only allowed with session "new"')
    if not request.session:
        return {}
    if request.session == "new":
        return {"session_id": new_id(), "session_timeout": request.session_timeout or DEFAULT_SESSION_TIMEOUT_S}
    if not is_id(request.session):
        raise SessionNotFound(f"session: there is no session {request.session[:40]!r}")
    return {"session_id": request.session}


def _same_request(state: JobState, fingerprint: str) -> JobState:
    if state.job.options.get("fingerprint") != fingerprint:
        raise Conflict("Idempotency-Key: was already used with another body")
    return state


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
