"""API: the coordinator over HTTP: JSON for programs, one page for people, bundles for devices.

Every error is JSON with `error`, `hint`, `kind` and `exit_code`. Who may ask is narrow: the Host
must be one of ours, and a request that changes something must not come from a page of another
origin. There is no login yet, so the server listens on loopback only, unless told otherwise.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from edgekit import container
from edgekit.errors import (
    BundleError,
    EdgekitError,
    MessageError,
    StorageError,
    UntrustedError,
    UsageError,
)
from edgekit.fleet import (
    bodies,
    control_routes,
    enrolment_routes,
    files,
    inventory,
    parts_routes,
    repository,
    repository_routes,
    rollout_views,
    rollouts,
    series,
)
from edgekit.fleet.bodies import Json
from edgekit.fleet.coordinator import Coordinator
from edgekit.fleet.guard import SameOrigin, SecurityHeaders
from edgekit.fleet.metrics import registry_of
from edgekit.fleet.overview import LIST_LIMIT, EventQuery, Overviews, events_of
from edgekit.fleet.store import UnknownId

Endpoint = Callable[[Request], Awaitable[Response]]

WEB = Path(__file__).parent / "web"
_LIVE_S = 1.0
_KEEPALIVE_EVERY = 15


def application(coordinator: Coordinator, *, hosts: Sequence[str]) -> Starlette:
    """The coordinator's HTTP side, for requests whose Host is one of `hosts`."""
    api = Api(coordinator)
    routes = [
        Route("/", _page),
        Route("/api/overview", api.overview),
        Route("/api/live", api.live),
        Route("/api/devices", api.list_devices),
        Route("/api/devices/{site}/{device}", api.show_device),
        Route("/api/events", api.list_events),
        Route("/api/bundles", api.list_bundles),
        Route("/api/bundles", api.publish, methods=["PUT"]),
        Route("/api/files/{name}", api.keep_file, methods=["PUT"]),
        Route("/api/rollouts", api.list_rollouts),
        Route("/api/rollouts", api.create_rollout, methods=["POST"]),
        Route("/api/rollouts/{id:int}", api.show_rollout),
        Route("/api/rollouts/{id:int}/{move}", api.move_rollout, methods=["POST"]),
        Route("/api/rounds", api.list_series),
        Route("/api/rounds", api.start_rounds, methods=["POST"]),
        Route("/api/rounds/{id:int}", api.show_series),
        *control_routes.routes(store=coordinator.store, control=coordinator.control),
        *repository_routes.routes(coordinator.repository),
        *parts_routes.routes(coordinator.store),
        Route("/metrics", api.metrics),
        Mount("/web", StaticFiles(directory=WEB)),
    ]
    if coordinator.registrar is not None:
        routes += enrolment_routes.routes(coordinator.registrar.office)
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
            Middleware(SecurityHeaders),
            Middleware(SameOrigin),
        ],
        exception_handlers={EdgekitError: _foreseen, ClientDisconnect: _gone},
    )


class Api:
    """One method for each route."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._store = coordinator.store
        self._overviews = Overviews(coordinator)
        self._registry = registry_of(coordinator)

    async def overview(self, _: Request) -> Response:
        """What the dashboard shows, in one document."""
        return Response(
            await run_in_threadpool(self._overviews.current), media_type="application/json"
        )

    async def live(self, request: Request) -> Response:
        """The overview whenever it changes, as server-sent events."""
        return StreamingResponse(
            self._changes(request),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    async def list_devices(self, request: Request) -> Response:
        """All devices, or those of `?site=`."""

        def read() -> list[inventory.DeviceView]:
            with self._store.read() as connection:
                found = inventory.every(connection, site=request.query_params.get("site"))
                return [inventory.view(device) for device in found]

        shown = await run_in_threadpool(read)
        return Json({"devices": shown, "broker_connected": self._coordinator.connected})

    async def show_device(self, request: Request) -> Response:
        """One device."""
        name = inventory.key(request.path_params["site"], request.path_params["device"])

        def read() -> inventory.DeviceView:
            with self._store.read() as connection:
                return inventory.view(inventory.find(connection, name))

        return Json(await run_in_threadpool(read))

    async def list_events(self, request: Request) -> Response:
        """The latest events, the newest first (`overview.EventQuery`)."""
        asked = EventQuery.parse(request.query_params)

        def read() -> object:
            with self._store.read() as connection:
                return events_of(connection, asked)

        return Json({"events": await run_in_threadpool(read)})

    async def list_bundles(self, _: Request) -> Response:
        """Every published bundle, the latest first."""

        def read() -> list[repository.Published]:
            with self._store.read() as connection:
                return repository.every(connection)

        return Json({"bundles": await run_in_threadpool(read)})

    async def publish(self, request: Request) -> Response:
        """Take a bundle; 201 where it is new, 200 where it was there."""
        received = self._coordinator.repository.incoming()
        await _receive(request, received, limit=container.MAX_FILE_BYTES)
        published, new = await run_in_threadpool(self._coordinator.repository.publish, received)
        return Json({"bundle": published, "new": new}, status_code=201 if new else 200)

    async def keep_file(self, request: Request) -> Response:
        """Take a file of a series of rounds."""
        received = self._coordinator.files.incoming()
        await _receive(request, received, limit=files.MAX_FILE_BYTES)
        name = request.path_params["name"]
        await run_in_threadpool(self._coordinator.files.keep, received, name)
        return Json({"file": name}, status_code=201)

    async def list_rollouts(self, _: Request) -> Response:
        """The latest rollouts, the newest first."""

        def read() -> list[rollout_views.RolloutView]:
            with self._store.read() as connection:
                return rollout_views.latest(connection, limit=LIST_LIMIT)

        return Json({"rollouts": await run_in_threadpool(read)})

    async def create_rollout(self, request: Request) -> Response:
        """Begin a rollout (`rollouts.Request`)."""
        asked = await bodies.read(request, rollouts.Request)
        await run_in_threadpool(self._coordinator.repository.notice)
        number = await run_in_threadpool(self._coordinator.rollouts.create, asked)
        self._coordinator.wake()
        return Json(await run_in_threadpool(self._rollout, number), status_code=201)

    async def show_rollout(self, request: Request) -> Response:
        """One rollout."""
        return Json(await run_in_threadpool(self._rollout, request.path_params["id"]))

    async def move_rollout(self, request: Request) -> Response:
        """Pause, resume or abort a rollout."""
        service, move = self._coordinator.rollouts, request.path_params["move"]
        moves = {"pause": service.pause, "resume": service.resume, "abort": service.abort}
        if move not in moves:
            raise UnknownId(f"a rollout cannot be told to {move}", hint=", ".join(moves))
        number = request.path_params["id"]
        await run_in_threadpool(moves[move], number)
        self._coordinator.wake()
        return Json(await run_in_threadpool(self._rollout, number))

    async def list_series(self, _: Request) -> Response:
        """The latest series of rounds, the newest first."""

        def read() -> list[series.SeriesView]:
            with self._store.read() as connection:
                return series.latest(connection, limit=LIST_LIMIT)

        return Json({"series": await run_in_threadpool(read)})

    async def start_rounds(self, request: Request) -> Response:
        """Begin a series of rounds (`series.Request`)."""
        asked = await bodies.read(request, series.Request)
        await run_in_threadpool(self._coordinator.repository.notice)
        number = await run_in_threadpool(self._coordinator.rounds.begin, asked)
        return Json(await run_in_threadpool(self._series, number), status_code=201)

    async def show_series(self, request: Request) -> Response:
        """One series of rounds."""
        return Json(await run_in_threadpool(self._series, request.path_params["id"]))

    async def metrics(self, _: Request) -> Response:
        """Prometheus text."""
        text = await run_in_threadpool(generate_latest, self._registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def _rollout(self, number: int) -> rollout_views.RolloutView:
        with self._store.read() as connection:
            return rollout_views.view(connection, number)

    def _series(self, number: int) -> series.SeriesView:
        with self._store.read() as connection:
            return series.view(connection, number)

    async def _changes(self, request: Request) -> AsyncIterator[bytes]:
        sent, quiet = b"", 0
        while not await request.is_disconnected():
            current = await run_in_threadpool(self._overviews.current)
            if current != sent:
                sent, quiet = current, 0
                yield b"data: " + current + b"\n\n"
            elif quiet >= _KEEPALIVE_EVERY:
                quiet = 0
                yield b": still here\n\n"
            quiet += 1
            await asyncio.sleep(_LIVE_S)


async def _page(_: Request) -> Response:
    return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})


async def _receive(request: Request, path: Path, *, limit: int) -> None:
    """Write the body to `path`, on disk for good; nothing is left of one that is cut off."""
    size = 0
    try:
        with path.open("xb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise BundleError(f"the file has more than {limit} bytes")
                file.write(chunk)
            file.flush()
            await run_in_threadpool(os.fsync, file.fileno())
    except BaseException as e:
        path.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise StorageError(
                f"the coordinator cannot store the file: {e.strerror}", hint="check its free space"
            ) from e
        raise


async def _foreseen(_: Request, error: Exception) -> Response:
    assert isinstance(error, EdgekitError)
    body = {
        "error": error.message,
        "hint": error.hint,
        "kind": type(error).__name__,
        "exit_code": error.exit_code,
    }
    return Json(body, status_code=_status(error))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


def _status(error: EdgekitError) -> int:
    if isinstance(error, UnknownId):
        return 404
    if isinstance(error, UntrustedError):
        return 403
    if isinstance(error, BundleError):
        return 422
    if isinstance(error, StorageError):
        return 507
    return 400 if isinstance(error, (UsageError, MessageError)) else 409
