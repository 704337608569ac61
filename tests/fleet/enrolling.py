"""An enrolment office over real HTTP, with a clock moved by hand and a wire that can be bad."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.enrolment import Token
from edgekit.errors import EdgekitError
from edgekit.fleet import api, enrolment_routes
from edgekit.fleet.enrolment import Office
from edgekit.fleet.folder import Facts, FleetFolder
from edgekit.fleet.founding import found
from edgekit.fleet.members import Members
from tests.clock import ManualClock
from tests.fleet.processes import until

SITE = "berlin"
HOUR_MS = 3_600_000
DAY_S = 86_400.0
NOW_MS = 1_780_000_000_000  # in May 2026


class Wire:
    """What happens to answers on their way: lost, or changed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.lose = 0
        self.change: Callable[[bytes], bytes] = lambda body: body
        self.heard: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hearing() -> Message:
            message = await receive()
            self.heard.append(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            if self.lose:
                if message["type"] == "http.response.body":
                    self.lose -= 1
                    raise ConnectionAbortedError("the answer is lost")
                return
            if message["type"] == "http.response.start":
                plain = [pair for pair in message["headers"] if pair[0] != b"content-length"]
                message = {**message, "headers": plain}
            if message["type"] == "http.response.body":
                message = {**message, "body": self.change(message["body"])}
            await send(message)

        await self._app(scope, hearing if scope["type"] == "http" else receive, sending)


class Enrolling:
    """A fleet whose office can be asked at `url`.

    Args:
        tls: certificate and key, for https.
    """

    def __init__(self, path: Path, *, tls: tuple[Path, Path] | None = None) -> None:
        self.clock = ManualClock(now_ms=NOW_MS)
        self.changes = 0
        self._bound = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._bound.getsockname()[1]}"
        self.folder = FleetFolder(path)
        facts = Facts(
            name="test",
            sites=(SITE,),
            broker="mqtts://127.0.0.1:1",
            repositories=("http://127.0.0.1:1/repository/",),
            coordinator=self.url,
        )
        found(self.folder, facts, clock=self.clock)
        self.members = Members(self.folder.members)
        self.office = Office(self.folder, self.members, clock=self.clock, changed=self._changed)
        handlers = {EdgekitError: api._foreseen}
        app = Starlette(
            routes=enrolment_routes.routes(self.office), exception_handlers=dict(handlers)
        )
        self.wire = Wire(app)
        certificate, key = tls or (None, None)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.wire,
                log_config=None,
                access_log=False,
                lifespan="off",
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._bound]}, daemon=True
        )
        self._thread.start()
        until(lambda: self._server.started)

    def token(self, device: str = "cam", *, hours: float = 1) -> Token:
        now_ms = self.clock.now_ms()
        expires_ms = now_ms + round(hours * HOUR_MS)
        return self.members.new_tokens([(SITE, device)], expires_ms=expires_ms, now_ms=now_ms)[0]

    def names(self) -> list[str]:
        return [subject.name for subject in self.members.current()]

    def held(self, device: str) -> int:
        """How many certificates of a device are valid."""
        with self.members.change() as change:
            return len(change.certificates(SITE, device, now_ms=self.clock.now_ms()))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._bound.close()

    def _changed(self) -> None:
        self.changes += 1


@contextmanager
def enrolling(path: Path, *, tls: tuple[Path, Path] | None = None) -> Iterator[Enrolling]:
    made = Enrolling(path, tls=tls)
    try:
        yield made
    finally:
        made.close()
