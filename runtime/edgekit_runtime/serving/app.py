"""App: which request gets which answer. One for each listener; they share the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from edgekit.errors import AccessDenied, EdgekitError, NotServed, Overloaded
from edgekit_runtime.sensors import Sampler
from edgekit_runtime.serving import http, metrics, peer, routes
from edgekit_runtime.serving.access import Access, Unauthenticated
from edgekit_runtime.serving.address import may_speak
from edgekit_runtime.serving.application import Limits, Request
from edgekit_runtime.serving.connection import Connection
from edgekit_runtime.serving.failures import status_of
from edgekit_runtime.serving.http import Head, HttpError, Response
from edgekit_runtime.serving.infer import Inference
from edgekit_runtime.serving.listen import room_for
from edgekit_runtime.serving.memo import Memo
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.peer import Peer
from edgekit_runtime.serving.replies import to_response
from edgekit_runtime.serving.repository import Installed, Repository, Source
from edgekit_runtime.serving.room import Room
from edgekit_runtime.serving.routes import Call
from edgekit_runtime.serving.shm import Regions, RegionTable

MAX_CHANGES = 16


class Service:
    """What all listeners of a server share.

    Attributes:
        room: the open connections, and what they take.
        errors: answers with an error status that no model counts, by status.
        memory: regions of shared memory that clients registered.
        repository: what can be loaded; by default nothing but what is served.
    """

    def __init__(
        self,
        models: Models,
        *,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        repository: Repository | None = None,
    ) -> None:
        self.models = models
        self.limits = limits
        self.room = Room(limits, connections=room_for(limits.connections), now=loop.time)
        self.errors: dict[int, int] = {}
        connections = self.room.connections
        self.inference = Inference(models, loop=loop, alone=lambda: len(connections) == 1)
        self.memory = RegionTable()
        self.repository = repository or Installed(models, _nothing)
        self._board = Sampler()
        self._loop = loop
        self._changes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="repository")

    def counted(self, response: Response) -> Response:
        """Count an error on its way out."""
        if response.status >= 400:
            self.errors[response.status] = self.errors.get(response.status, 0) + 1
        return response

    def metrics(self) -> bytes:
        """Everything that is counted, as Prometheus text."""
        return metrics.render(
            self.models.served(),
            connections=len(self.room.connections),
            http_errors=self.errors,
            board=self._board.latest(),
        )

    def regions_of(self, client: Peer) -> Regions:
        """The shared memory of a client, raising `AccessDenied` where it may have none."""
        if not client.is_local:
            raise AccessDenied("shared memory is for programs on this machine")
        if client.uid is None:
            raise AccessDenied(
                "which user this connection belongs to cannot be told, and shared memory is each"
                " user's own",
                hint="keep the connection open in both directions, or use a Unix socket",
            )
        return self.memory.of(client.uid)

    def change(self, change: Callable[[], None]) -> asyncio.Future[None]:
        """Change what is served on a thread, one change at a time.

        Raises `Overloaded` where too many wait already.
        """
        if self._changes >= MAX_CHANGES:
            raise Overloaded(f"{MAX_CHANGES} models are being loaded or unloaded", retry_after_s=10)
        self._changes += 1
        future = self._loop.run_in_executor(self._thread, change)
        future.add_done_callback(self._changed)
        return future

    def _changed(self, _: asyncio.Future[None]) -> None:
        self._changes -= 1

    def later(self, change: Callable[[], None], connection: Connection) -> None:
        """Change what is served, and answer when it is done; see `change`."""

        def done(future: asyncio.Future[None]) -> None:
            error = NotServed("the server ends") if future.cancelled() else future.exception()
            if error is None:
                connection.respond(http.response(200))
            elif isinstance(error, Exception):
                connection.respond(self.counted(_change_failed(error)))

        self.change(change).add_done_callback(done)

    async def close(self) -> None:
        """End what runs beside the loop, and forget the clients' memory."""
        self.memory.close()
        self.inference.close()
        await self._loop.run_in_executor(
            None, lambda: self._thread.shutdown(wait=True, cancel_futures=True)
        )


class App:
    """Answers the requests of one listener."""

    def __init__(self, service: Service, access: Access) -> None:
        self.limits = service.limits
        self.room = service.room
        self.access = access
        self._service = service
        self.generation = 0
        self._heads: Memo[Head] = Memo()
        self._regions: dict[Connection, Regions] = {}

    def opened(self, connection: Connection) -> bool:
        return self.room.enter(connection)

    def closed(self, connection: Connection) -> None:
        self.room.leave(connection)
        self._regions.pop(connection, None)

    def parse(self, raw: bytes) -> Head:
        head = self._heads.get(raw)
        if head is not None:
            return head
        head = http.parse(raw)
        if not may_speak(self.access.listener, host=head.host, origin=head.origin):
            raise HttpError(403, f"not served to Host {head.host!r} with Origin {head.origin!r}")
        try:
            self.access.admit(head.token)
        except Unauthenticated as e:
            raise HttpError(401, e.with_hint) from e
        if head.content_encoding not in (None, "identity"):
            raise HttpError(415, f"content encoding {head.content_encoding!r} is not taken")
        return self._heads.put(raw, head)

    def forget(self) -> None:
        """Look at every head anew: who is admitted has changed."""
        self.generation += 1
        self._heads = Memo()

    def allocate(self, head: Head, size_bytes: int) -> memoryview | None:
        asked = _inference(head.segments)
        if asked is None:
            return None
        try:
            return self._service.models.find(*asked).allocate(size_bytes)
        except NotServed:
            return None

    def handle(self, request: Request, connection: Connection) -> None:
        head = request.head
        asked = _inference(head.segments)
        try:
            if asked is None:
                response = self._page(request, connection)
                if response is not None:
                    connection.respond(self._service.counted(response))
            elif head.method == "POST":
                self._service.inference.handle(
                    request, connection, *asked, lambda: self._regions_of(connection)
                )
            else:
                connection.respond(self._service.counted(_wrong_method("POST")))
        except Exception as e:  # noqa: BLE001 - one bad request must not end the server
            connection.respond(self._service.counted(to_response(e)))

    def _page(self, request: Request, connection: Connection) -> Response | None:
        head = request.head
        route = routes.find(head.segments)
        if route is None:
            return http.error(404, f"there is nothing at /{'/'.join(head.segments)}")
        if head.method != route.method and not (head.method == "HEAD" and route.method == "GET"):
            return _wrong_method(route.method)
        return route.page(
            Call(
                self._service,
                self.access,
                request,
                connection,
                lambda: self._regions_of(connection),
            )
        )

    def _regions_of(self, connection: Connection) -> Regions:
        """The shared memory of a client, raising `AccessDenied` where it may have none."""
        known = self._regions.get(connection)
        if known is not None:
            return known
        other = peer.of(connection.info("socket"))
        regions = self._regions[connection] = self._service.regions_of(other)
        return regions


def _inference(segments: tuple[str, ...]) -> tuple[str, str | None] | None:
    """Model and version whose inference a path asks for."""
    match segments:
        case ("v2", "models", name, "infer"):
            return name, None
        case ("v2", "models", name, "versions", version, "infer"):
            return name, version
        case _:
            return None


def _wrong_method(method: str) -> Response:
    return http.error(405, f"this path takes {method}", headers=[("Allow", method)])


def _change_failed(error: Exception) -> Response:
    """Why a model was not loaded or unloaded; a bundle that may not serve here is a conflict."""
    if status_of(error) is None and isinstance(error, EdgekitError):
        return http.error(409, error.with_hint)
    return to_response(error)


def _nothing() -> Sequence[Source]:
    return ()
