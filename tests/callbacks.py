"""Callbacks that stages are given: one that does nothing, and one that stops a job."""

from __future__ import annotations

from collections.abc import Callable


class StopError(Exception):
    """What a cancelled job's callback raises."""


def nothing(*args: object) -> None:
    pass


def stop_at(count: int) -> Callable[..., None]:
    """A callback that raises when it is called for the `count`th time."""
    calls = []

    def callback(*args: object) -> None:
        calls.append(args)
        if len(calls) == count:
            raise StopError

    return callback
