"""Routes of parts: what a device runs on, its slots and its drift, as far as they are known."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgekit.fleet import inventory, parts
from edgekit.fleet.bodies import Json
from edgekit.fleet.parts import PartsView
from edgekit.fleet.store import Store


def routes(store: Store) -> list[Route]:
    """`GET /api/devices/{site}/{device}/parts`."""

    async def show(request: Request) -> Response:
        name = inventory.key(request.path_params["site"], request.path_params["device"])

        def read() -> PartsView:
            with store.read() as connection:
                device = inventory.find(connection, name)
                return parts.of(connection, name, device.telemetry)

        return Json(await run_in_threadpool(read))

    return [Route("/api/devices/{site}/{device}/parts", show)]
