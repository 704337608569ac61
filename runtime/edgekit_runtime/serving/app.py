"""App: which request gets which answer. One for each listener; they share the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgekit_runtime.serving import http, metrics, pages
from edgekit_runtime.serving.address import Address, may_speak
from edgekit_runtime.serving.connection import Connection, Limits, Request
from edgekit_runtime.serving.http import Head, HttpError, Response
from edgekit_runtime.serving.infer import Inference, to_response
from edgekit_runtime.serving.memo import Memo
from edgekit_runtime.serving.models import Models

Page = Callable[[], Response]


class Service:
    """What all listeners of a server share.

    Attributes:
        connections: those that are open.
        errors: answers with an error status that no model counts, by status.
    """

    def __init__(self, models: Models, *, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.models = models
        self.limits = limits
        self.connections: set[Connection] = set()
        self.errors: dict[int, int] = {}
        self.inference = Inference(models, loop=loop, alone=lambda: len(self.connections) == 1)

    def counted(self, response: Response) -> Response:
        """Count an error on its way out."""
        if response.status >= 400:
            self.errors[response.status] = self.errors.get(response.status, 0) + 1
        return response


class App:
    """Answers the requests of one listener."""

    def __init__(self, service: Service, listener: Address) -> None:
        self.limits = service.limits
        self._service = service
        self._listener = listener
        self._heads: Memo[Head] = Memo()

    def opened(self, connection: Connection) -> bool:
        self._service.connections.add(connection)
        return len(self._service.connections) <= self.limits.connections

    def closed(self, connection: Connection) -> None:
        self._service.connections.discard(connection)

    def parse(self, raw: bytes) -> Head:
        head = self._heads.get(raw)
        if head is not None:
            return head
        head = http.parse(raw)
        if not may_speak(self._listener, host=head.host, origin=head.origin):
            raise HttpError(403, f"not served to Host {head.host!r} with Origin {head.origin!r}")
        if head.content_encoding not in (None, "identity"):
            raise HttpError(415, f"content encoding {head.content_encoding!r} is not taken")
        return self._heads.put(raw, head)

    def handle(self, request: Request, connection: Connection) -> None:
        head = request.head
        try:
            match head.segments:
                case ("v2", "models", name, "infer"):
                    version = None
                case ("v2", "models", name, "versions", version, "infer"):
                    pass
                case _:
                    connection.respond(self._service.counted(self._page(head)))
                    return
            if head.method == "POST":
                self._service.inference.handle(request, connection, name, version)
            else:
                connection.respond(self._service.counted(_wrong_method("POST")))
        except Exception as e:  # noqa: BLE001 - one bad request must not end the server
            connection.respond(self._service.counted(to_response(e)))

    def _page(self, head: Head) -> Response:
        method, page = self._find(head.segments)
        if page is None:
            return http.error(404, f"there is nothing at /{'/'.join(head.segments)}")
        if head.method != method and not (head.method == "HEAD" and method == "GET"):
            return _wrong_method(method)
        return page()

    def _find(self, segments: tuple[str, ...]) -> tuple[str, Page | None]:
        """Method and maker of the page at a path."""
        models = self._service.models
        match segments:
            case ("v2",):
                return "GET", lambda: http.json_response(200, pages.server(models))
            case ("v2", "health", "live" | "ready"):
                return "GET", lambda: http.response(200)
            case ("v2", "models", "stats"):
                stats = models.served
                return "GET", lambda: http.json_response(200, pages.statistics(stats()))
            case ("v2", "repository", "index"):
                return "POST", lambda: http.json_response(200, pages.index(models.served()))
            case ("v2", "systemsharedmemory" | "cudasharedmemory", "status"):
                # No region can be registered, so that none is and all are unregistered.
                return "GET", lambda: http.json_response(200, [])
            case ("v2", "systemsharedmemory" | "cudasharedmemory", "unregister"):
                return "POST", lambda: http.response(200)
            case ("metrics",):
                return "GET", self._metrics
            case ("v2", "models", name, "versions", version, *rest):
                return "GET", self._model_page(name, version, tuple(rest))
            case ("v2", "models", name, *rest):
                return "GET", self._model_page(name, None, tuple(rest))
            case _:
                return "GET", None

    def _model_page(self, name: str, version: str | None, rest: tuple[str, ...]) -> Page | None:
        models = self._service.models

        def metadata() -> Response:
            served = models.find(name, version)
            return http.json_response(200, pages.metadata(served, models.versions(name)))

        def ready() -> Response:
            models.find(name, version)
            return http.response(200)

        def config() -> Response:
            return http.json_response(200, pages.config(models.find(name, version)))

        def stats() -> Response:
            found = models.find(name, version)
            chosen = [found] if version else [m for m in models.served() if m.name == name]
            return http.json_response(200, pages.statistics(chosen))

        table: dict[tuple[str, ...], Page] = {
            (): metadata,
            ("ready",): ready,
            ("config",): config,
            ("stats",): stats,
        }
        return table.get(rest)

    def _metrics(self) -> Response:
        text = metrics.render(
            self._service.models.served(),
            connections=len(self._service.connections),
            http_errors=self._service.errors,
        )
        return http.response(200, text, content_type=metrics.CONTENT_TYPE)


def _wrong_method(method: str) -> Response:
    return http.error(405, f"this path takes {method}", headers=[("Allow", method)])
