"""Serve: the coordinator as a process: its socket, its signals and its end."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import uvicorn

from edgekit.clock import SystemClock
from edgekit.errors import FleetError
from edgekit.fleet import api, connections
from edgekit.fleet.address import Address
from edgekit.fleet.connections import Gate
from edgekit.fleet.coordinator import Coordinator, Settings
from edgekit.fleet.enrolment_routes import DevicesOnly

log = logging.getLogger(__name__)

_GRACE_S = 2


def run(
    settings: Settings,
    *,
    listen: Address,
    devices: Address | None = None,
    hosts: Iterable[str],
    on_ready: Callable[[Address, Address | None], None],
) -> None:
    """Run a coordinator until SIGINT or SIGTERM.

    Args:
        listen: where HTTP is served; port 0 takes a free one.
        devices: where only that is served which devices need.
        hosts: further names under which clients may address it.
        on_ready: called when devices and clients can connect, with the addresses.

    Raises:
        LinkError: the port is in use, or no broker answers.
        FleetError: a thread of the coordinator ended by an unforeseen error.
    """
    # Its start and end are told by us; its warnings and tracebacks stay.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with ExitStack() as sockets:
        wanted = (("--listen", listen), ("--devices", devices))
        bound = [sockets.enter_context(_bind(one, option)) for option, one in wanted if one]
        address, *others = (_address(one) for one in bound)
        public = others[0] if others else None
        coordinator = Coordinator(settings, clock=SystemClock())
        names = {"127.0.0.1", "localhost", "::1", socket.gethostname(), *hosts}
        names |= {one.host for one in (listen, devices) if one is not None}
        if settings.fleet is not None:
            names |= settings.fleet.facts().hosts
        gates = _gates(address, public)
        server = uvicorn.Server(
            uvicorn.Config(
                DevicesOnly(
                    api.application(coordinator, hosts=sorted(names)),
                    port=public.port if public else None,
                ),
                http=connections.protocol(lambda port: gates.get(port, gates[address.port])),
                ws="none",
                backlog=connections.BACKLOG,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        failed: list[str] = []

        def on_failure(failure: threading.ExceptHookArgs) -> None:
            name = failure.thread.name if failure.thread else "a thread"
            trace = (failure.exc_type, failure.exc_value, failure.exc_traceback)
            log.critical("thread ended", extra={"thread": name}, exc_info=trace)  # type: ignore[arg-type]
            failed.append(name)
            server.should_exit = True

        # uvicorn raises the signal again when it has shut down; the threads end after it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _ignore)
        try:
            coordinator.start(on_failure=on_failure)
            on_ready(address, public)
            server.run(sockets=bound)
        finally:
            coordinator.close()
    if failed:
        raise FleetError(
            f"the coordinator ended because its thread {failed[0]} did", hint="see the log above"
        )


def _bind(address: Address, option: str) -> socket.socket:
    bound = address.bind(what="the coordinator", option=option)
    bound.listen(connections.BACKLOG)
    return bound


def _gates(address: Address, public: Address | None) -> dict[int | None, Gate]:
    """The gate of each socket by its port; a socket for everybody has the places for devices."""
    places = connections.room()
    if public is None:
        return {address.port: Gate(most=places.devices, name="--listen")}
    return {
        address.port: Gate(most=places.operators, name="--listen"),
        public.port: Gate(most=places.devices, name="--devices"),
    }


def _address(bound: socket.socket) -> Address:
    host, port, *_ = bound.getsockname()
    return Address(host, port)


def _ignore(_number: int, _frame: object) -> None:
    """Leave it to uvicorn."""
