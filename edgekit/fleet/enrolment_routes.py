"""Routes for devices: enrolment, renewal, bundles; and a socket that serves nothing else.

The API has no login and stays on loopback. What devices need is protected by itself: enrolment by
tokens, renewal by certificates, bundles by their signatures; so it may face a network.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edgekit import enrolment
from edgekit.errors import MessageError
from edgekit.fleet.enrolment import Office

_READING = frozenset({"GET", "HEAD"})
_REPOSITORY = "/repository/"
_MAX_BODY_BYTES = 2 * enrolment.MAX_REQUEST_BYTES


def routes(office: Office) -> list[Route]:
    """The routes of an office."""
    return [
        Route(enrolment.ENROLL_PATH, _answering(office.enroll), methods=["POST"]),
        Route(enrolment.RENEW_PATH, _answering(office.renew), methods=["POST"]),
    ]


class DevicesOnly:
    """Hides all but what devices need from those who come in through one port.

    Args:
        app: everything.
        port: of the socket for devices; `None` hides nothing.
    """

    def __init__(self, app: ASGIApp, *, port: int | None) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._came_in(scope) and not _is_for_devices(scope):
            await Response(status_code=404)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _came_in(self, scope: Scope) -> bool:
        server = scope.get("server")
        return self._port is not None and (server is None or server[1] == self._port)


def _is_for_devices(scope: Scope) -> bool:
    path, method = scope["path"], scope["method"]
    if method in _READING:
        return bool(path.startswith(_REPOSITORY))
    return method == "POST" and path in (enrolment.ENROLL_PATH, enrolment.RENEW_PATH)


def _answering(answer: Callable[[bytes], bytes]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _MAX_BODY_BYTES:
                raise MessageError(f"the request has more than {_MAX_BODY_BYTES} bytes")
        return Response(
            await run_in_threadpool(answer, bytes(raw)),
            media_type="application/json",
            headers={"cache-control": "no-store"},
        )

    return endpoint
