"""Bodies over HTTP: JSON as every route of the coordinator reads and gives it."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgekit.errors import UsageError

T = TypeVar("T")

MAX_BODY_BYTES = 1 << 20


class Json(Response):
    """A value as JSON; figures that do not exist are null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


async def read(request: Request, kind: type[T]) -> T:
    """The JSON body of a request, raising `UsageError` that names the wrong field."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise UsageError(f"the request has more than {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(bytes(raw), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise UsageError(f"the request is not valid: {e}") from e
