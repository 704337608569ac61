"""Connections: how many clients a socket of the coordinator holds, and how long a silent one stays.

Promise: strangers who connect and say nothing, or take nothing of an answer, keep nobody out for
longer than it takes to see that they are silent, and never use up the process's descriptors; each
socket has places of its own. Where all places are taken, who kept us waiting longest makes way for
whoever comes; where nobody keeps us waiting, the newcomer is refused. A body has time for its size
at a least rate, as Apache's mod_reqtimeout gives it (`body=20,MinRate=500`).
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

log = logging.getLogger(__name__)

# How many clients wait to be accepted; all of them may become descriptors at once.
BACKLOG = 128
DEVICES = 1024
OPERATORS = 64
# A client may need a second descriptor: the file that is sent to it or received from it.
_EACH = 2
# For the store, the broker, files under way, and what is accepted before it can be counted.
_RESERVED = 256 + 2 * BACKLOG
_SWEEP_S = 1.0
_TOLD_EVERY_S = 60.0

Turn = Literal["head", "body", "answer"]


class Patience(NamedTuple):
    """How long a client may keep us waiting.

    Attributes:
        ask_s: for the whole head of a request, and for its body beside what the rate gives.
        rate: bytes a second at which a body comes at least.
        take_s: without taking anything of an answer that it asked for.
        yield_s: the same, until it makes way for others: a slow link takes nothing now and then.
    """

    ask_s: float = 20.0
    rate: float = 512.0
    take_s: float = 300.0
    yield_s: float = 30.0


class Wait(NamedTuple):
    """Since when we wait for a client, for what, and how much of it came."""

    since_s: float
    turn: Turn
    received_bytes: int = 0


def ends_at(wait: Wait, patience: Patience) -> float:
    """When a client has kept us waiting for too long; on the clock of `since_s`."""
    if wait.turn == "answer":
        return wait.since_s + patience.take_s
    return wait.since_s + patience.ask_s + wait.received_bytes / patience.rate


def makes_way(wait: Wait | None, patience: Patience, *, now_s: float) -> bool:
    """Whether another may have the place of a client; of several such, who waited longest goes."""
    if wait is None:
        return False
    return wait.turn != "answer" or now_s >= wait.since_s + patience.yield_s


class Places(NamedTuple):
    """How many clients each of the two sockets holds."""

    devices: int
    operators: int


def places(descriptors: int) -> Places:
    """How many clients a limit of descriptors has room for; however low it is, some."""
    left = max(descriptors - _RESERVED, descriptors // 2) // _EACH
    operators = min(OPERATORS, max(left // 4, 1))
    return Places(min(DEVICES, max(left - operators, 1)), operators)


def room() -> Places:
    """How many clients there may be, after asking the system for as many.

    The soft limit of descriptors is raised as far as they need and the hard limit lets it.
    """
    wanted = _EACH * (DEVICES + OPERATORS) + _RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return places(wanted)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return places(soft)


class Gate:
    """The clients of one socket. All methods are called on the event loop.

    Args:
        most: how many there may be.
        name: of the socket, for the log.
    """

    def __init__(self, *, most: int, name: str, patience: Patience | None = None) -> None:
        self._most = most
        self._name = name
        self._patience = patience or Patience()
        self._clients: set[Bounded] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._told_s = float("-inf")

    def enter(self, client: Bounded) -> None:
        """Take a client in, in the place of another where there is none; or end its connection."""
        if len(self._clients) >= self._most:
            now_s = client.loop.time()
            waiting = [
                one for one in self._clients if makes_way(one.wait, self._patience, now_s=now_s)
            ]
            self._tell(now_s)
            if not waiting:
                client.transport.abort()
                return
            self._end(min(waiting, key=_since))
        self._clients.add(client)
        self._arm(client.loop)

    def leave(self, client: Bounded) -> None:
        self._clients.discard(client)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the connections of those who keep us waiting for too long."""
        self._timer = None
        now_s = loop.time()
        for client in list(self._clients):
            client.look()
            if client.wait is not None and now_s >= ends_at(client.wait, self._patience):
                self._end(client)
        if self._clients:
            self._arm(loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None:
            self._timer = loop.call_later(_SWEEP_S, self._sweep, loop)

    def _end(self, client: Bounded) -> None:
        self._clients.discard(client)
        client.transport.abort()

    def _tell(self, now_s: float) -> None:
        if now_s - self._told_s >= _TOLD_EVERY_S:
            self._told_s = now_s
            facts = {"socket": self._name, "places": self._most}
            log.warning("all places of a socket are taken", extra=facts)


def _since(client: Bounded) -> float:
    assert client.wait is not None
    return client.wait.since_s


class Bounded(H11Protocol):
    """HTTP as uvicorn speaks it, for a client that has to be let in; see `protocol`.

    Attributes:
        wait: what we wait for; `None` while the client waits for us.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        gate_of: Callable[[int | None], Gate],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._gate_of = gate_of
        self._gate: Gate | None = None
        self.wait: Wait | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._gate = self._gate_of(self.server[1] if self.server else None)
        self.look()
        self._gate.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._gate is not None:
            self._gate.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.wait is not None and self.wait.turn == "body":
            self.wait = self.wait._replace(received_bytes=self.wait.received_bytes + len(data))
        self.look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.wait = None  # what comes now is another request
        self.look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.look()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.look()

    def look(self) -> None:
        """Note whose turn it is; who still owes us the same has not begun anew."""
        turn = self._turn()
        if turn is None:
            self.wait = None
        elif self.wait is None or self.wait.turn != turn:
            self.wait = Wait(self.loop.time(), turn)

    def _turn(self) -> Turn | None:
        if self.flow.write_paused or self.transport.is_closing():
            return "answer"
        if self.flow.read_paused:
            return None
        theirs = self.conn.their_state
        if theirs is h11.SEND_BODY and self.conn.our_state is not h11.DONE:
            return "body"
        # The rest of a body that was answered already has as long as a head, whatever its size.
        return "head" if theirs in (h11.IDLE, h11.SEND_BODY) else None


def protocol(gate_of: Callable[[int | None], Gate]) -> type[asyncio.Protocol]:
    """What uvicorn makes of each connection; `gate_of` finds the gate of a socket by its port."""

    class Gated(Bounded):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop, gate_of=gate_of)

    return Gated
