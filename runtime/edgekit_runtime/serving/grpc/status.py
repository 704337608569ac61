"""Status: how gRPC says what HTTP says by a number."""

from __future__ import annotations

import logging
import secrets

import grpc

from edgekit.errors import EdgekitError
from edgekit_runtime.serving.access import Unauthenticated
from edgekit_runtime.serving.failures import status_of

log = logging.getLogger(__name__)

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Status and text of an error; one that nobody foresaw is logged with an id."""
    if isinstance(error, Unauthenticated):
        return grpc.StatusCode.UNAUTHENTICATED, error.with_hint
    status = status_of(error)
    if status is None and isinstance(error, EdgekitError):
        # A bundle that may not serve here, which HTTP calls a conflict.
        return grpc.StatusCode.FAILED_PRECONDITION, error.with_hint
    if status is None:
        request_id = secrets.token_hex(8)
        log.error("request failed", exc_info=error, extra={"request_id": request_id})
        return grpc.StatusCode.INTERNAL, f"internal error; see the log for {request_id}"
    hint = f"; {error.hint}" if isinstance(error, EdgekitError) and error.hint else ""
    return _CODES[status], f"{error}{hint}"


def retry_after_s(error: Exception) -> float | None:
    """When it makes sense to ask again; `None` where the error does not say."""
    found = getattr(error, "retry_after_s", None)
    return float(found) if found is not None else None
