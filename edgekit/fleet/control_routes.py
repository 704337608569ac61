"""Routes of commands: ask a device for something, and read what came of it."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgekit.fleet import bodies, control_rows
from edgekit.fleet.bodies import Json
from edgekit.fleet.control import Control
from edgekit.fleet.control_rows import CommandView
from edgekit.fleet.store import Store

LIST_LIMIT = 200


def routes(*, store: Store, control: Control) -> list[Route]:
    """`/api/commands` and what is below."""

    async def ask(request: Request) -> Response:
        """Keep a command for its device (`control_rows.Request`); 201."""
        asked = await bodies.read(request, control_rows.Request)
        number = await run_in_threadpool(control.ask, asked)
        return Json(await run_in_threadpool(_read, store, number), status_code=201)

    async def list_(request: Request) -> Response:
        """The latest commands, the newest first; all, or those of `?device=`."""
        device = request.query_params.get("device")

        def read() -> list[CommandView]:
            with store.read() as connection:
                return control_rows.latest(connection, device=device, limit=LIST_LIMIT)

        return Json({"commands": await run_in_threadpool(read)})

    async def show(request: Request) -> Response:
        """One command, with its output."""
        return Json(await run_in_threadpool(_read, store, request.path_params["number"]))

    return [
        Route("/api/commands", list_),
        Route("/api/commands", ask, methods=["POST"]),
        Route("/api/commands/{number}", show),
    ]


def _read(store: Store, number: str) -> CommandView:
    with store.read() as connection:
        return control_rows.find(connection, number)
