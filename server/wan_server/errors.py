"""Every error a user may see, each with its HTTP status and code.

    WanboxError                 500 internal_error
    ├── InvalidRequest          400 invalid_request
    ├── Unauthorized            401 unauthorized
    ├── Forbidden               403 forbidden
    ├── NotFound                404 not_found
    │   └── SessionNotFound     404 SESSION_NOT_FOUND
    ├── Conflict                409 conflict
    ├── InvalidTransition       409 invalid_transition
    ├── TooLarge                413 limit_exceeded
    ├── InvalidInput            422 validation_error
    ├── TooManyRequests         429 rate_limited
    └── Unavailable             503 unavailable

Knows no HTTP library: `envelope.py` turns these into responses.
"""

from __future__ import annotations

from typing import ClassVar


class WanboxError(Exception):
    """Something went wrong."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or type(self).__doc__ or self.title
        super().__init__(self.detail)

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error."""
        return {}


class InvalidRequest(WanboxError):
    """The request cannot be read."""

    status = 400
    code = "invalid_request"
    title = "Invalid request"


class Unauthorized(WanboxError):
    """A valid API key is needed: send it as `Authorization: Bearer <key>`."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="wanbox"'}


class Forbidden(WanboxError):
    """This is not allowed."""

    status = 403
    code = "forbidden"
    title = "Forbidden"


class NotFound(WanboxError):
    """There is no such thing here."""

    status = 404
    code = "not_found"
    title = "Not found"


class SessionNotFound(NotFound):
    """There is no such session."""

    code = "SESSION_NOT_FOUND"


class Conflict(WanboxError):
    """This contradicts what is already there."""

    status = 409
    code = "conflict"
    title = "Conflict"


class InvalidTransition(WanboxError):
    """The task is not in a state that allows this."""

    status = 409
    code = "invalid_transition"
    title = "Invalid transition"


class TooLarge(WanboxError):
    """There are too many bytes."""

    status = 413
    code = "limit_exceeded"
    title = "Content too large"


class InvalidInput(WanboxError):
    """A field has a value that cannot be used."""

    status = 422
    code = "validation_error"
    title = "Validation error"


class _Retryable(WanboxError):
    """Try again later."""

    def __init__(self, detail: str | None = None, retry_after_s: int = 5) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class TooManyRequests(_Retryable):
    """There is too much waiting already."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"


class Unavailable(_Retryable):
    """The server cannot do this at the moment."""

    status = 503
    code = "unavailable"
    title = "Service unavailable"
