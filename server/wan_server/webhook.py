"""Webhook delivery: a POST of the task's result when it has ended. Tries are counted by the durable workflow."""

from __future__ import annotations

from typing import Any, Final

from wan_server.clock import timestamp
from wan_server.fetch import FetchFailed, FetchRefused, post_json
from wan_server.job import JobState
from wan_server.settings import Settings

TIMEOUT_S: Final = 10.0


class WebhookFailed(Exception):
    """The receiver did not answer with a 2xx status."""


def payload(state: JobState) -> dict[str, Any]:
    """What the receiver gets: the fields of the hosted service, with the live status numbers."""
    return {
        "id": state.job.id,
        "status": int(state.status),
        "status_text": state.status.text,
        "output": state.output,
        "error": state.error or "",
        "session_id": state.job.options.get("session_id"),
        "created_at": timestamp(state.created_at),
        "updated_at": timestamp(state.updated_at),
    }


def deliver(settings: Settings, url: str, body: dict[str, Any]) -> int:
    """POST once. Returns the HTTP status; raises WebhookFailed when it is not 2xx."""
    headers = {"User-Agent": "wanbox-webhook", "X-Wanbox-Task": body["id"]}
    status = post_json(url, body, headers=headers, timeout_s=TIMEOUT_S, allow_private=settings.allow_private_urls)
    if not 200 <= status < 300:
        raise WebhookFailed(f"the receiver answered {status}")
    return status


def is_worth_another_try(error: BaseException) -> bool:
    """False for addresses that will never be posted to."""
    return isinstance(error, FetchFailed) or not isinstance(error, FetchRefused)
