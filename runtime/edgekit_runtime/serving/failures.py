"""Failures: how an error is counted, and how each protocol says it."""

from __future__ import annotations

from edgekit.errors import (
    AccessDenied,
    DeadlineMissed,
    EngineError,
    NotServed,
    Overloaded,
    RequestError,
    Unavailable,
    WorkerLost,
)
from edgekit_runtime.serving.stats import ErrorKind, RefusalKind

# The first class that an error is an instance of counts.
HTTP_STATUS: dict[type[Exception], int] = {
    RequestError: 400,
    AccessDenied: 403,
    NotServed: 404,
    Overloaded: 429,
    Unavailable: 503,
    WorkerLost: 503,
    DeadlineMissed: 504,
    EngineError: 500,
}


def kind_of(error: Exception) -> ErrorKind:
    """How statistics call an error."""
    if isinstance(error, RequestError | NotServed | AccessDenied):
        return "request"
    if isinstance(error, DeadlineMissed):
        return "deadline"
    if isinstance(error, WorkerLost):
        return "lost"
    if isinstance(error, Unavailable | Overloaded):
        return "unavailable"
    return "engine" if isinstance(error, EngineError) else "internal"


def refusal_of(error: Exception) -> RefusalKind | None:
    """How statistics call the refusal of a request that never waited; `None` for other errors."""
    if isinstance(error, Overloaded):
        return "full"
    return "deadline" if isinstance(error, DeadlineMissed) else None


def status_of(error: Exception) -> int | None:
    """The HTTP status of a foreseen error; `None` for one that nobody foresaw."""
    for kind, status in HTTP_STATUS.items():
        if isinstance(error, kind):
            return status
    return None
