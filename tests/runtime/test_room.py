"""The room: who makes way for whom, and how many bytes all clients hold together."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.listen import RESERVED_DESCRIPTORS, places
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.room import MIN_IDLE_S, Room, is_dispensable, leave_first
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime.served import Wire, get, infer, inline, load, output, serving, until


class Guest:
    """A connection as the rules see it."""

    def __init__(self, since: float, *, is_idle: bool = True, has_asked: bool = False) -> None:
        self.since = since
        self.is_idle = is_idle
        self.has_asked = has_asked
        self.room: Room | None = None

    def check(self, now: float) -> None:
        """It is never too slow."""

    def close(self) -> None:
        assert self.room is not None
        self.room.leave(self)

    abort = close


guests = st.builds(Guest, since=st.floats(0, 100), is_idle=st.booleans(), has_asked=st.booleans())


@given(found=st.lists(guests, max_size=20), now=st.floats(0, 200))
def test_who_works_or_just_came_never_makes_way(found: list[Guest], now: float) -> None:
    order = leave_first(found, now=now)

    assert all(one.is_idle and now - one.since >= MIN_IDLE_S for one in order)
    assert sorted(order, key=lambda one: (one.has_asked, one.since)) == order
    assert {id(one) for one in found} - {id(one) for one in order} == {
        id(one) for one in found if not is_dispensable(one, now=now)
    }


@given(found=st.lists(guests, max_size=12), limit=st.integers(1, 6))
def test_there_are_never_more_than_there_may_be(found: list[Guest], limit: int) -> None:
    time = [0.0]
    room = Room(Limits(), connections=limit, now=lambda: time[0])
    for one in found:
        one.room = room
        time[0] += 50
        while room.check_some():
            pass
        if not room.enter(one):
            room.leave(one)

        assert len(room.connections) <= limit

    assert room.turned_away + room.made_way + len(room.connections) == len(found)


@given(st.lists(st.integers(1, 300), max_size=20))
def test_bytes_are_given_back_as_they_were_taken(sizes: list[int]) -> None:
    room = Room(Limits(total_bytes=500), connections=1, now=lambda: 0)

    taken = [size for size in sizes if room.reserve(size)]

    assert room.held_bytes == sum(taken)
    assert not room.is_full
    for size in taken:
        room.release(size)
    assert room.held_bytes == 0


def test_one_body_alone_may_be_larger_than_all_together() -> None:
    room = Room(Limits(total_bytes=500), connections=1, now=lambda: 0)

    assert room.reserve(600)
    assert not room.reserve(1)


def test_clients_leave_descriptors_for_the_server_itself() -> None:
    assert places(1024, descriptors=1 << 20) == 1024
    assert places(1024, descriptors=1024) == 1024 - RESERVED_DESCRIPTORS
    assert places(1024, descriptors=96) == 48


def test_connections_beyond_the_limit_are_turned_away_while_all_work() -> None:
    with serving(Models(), limits=Limits(connections=1)) as server, Wire(server) as first:
        assert first.ask(get("/v2")).status == 200
        first.send(get("/v2")[:-4])
        with Wire(server) as second:
            answer = second.answer()
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert second.is_closed()
        assert first.ask(get("/v2")[-4:]).status == 200


def test_a_connection_that_only_waits_makes_way_for_a_new_one() -> None:
    limits = Limits(connections=2, receive_s=0.2)
    with serving(Models(), limits=limits) as server, Wire(server) as regular, Wire(server) as idler:
        assert regular.ask(get("/v2")).status == 200

        def comes_in() -> bool:
            try:
                with Wire(server) as newcomer:
                    return newcomer.ask(get("/v2")).status == 200
            except ConnectionError:
                return False

        until(comes_in)
        assert idler.is_closed()
        assert regular.ask(get("/v2")).status == 200


def test_an_idle_connection_costs_no_buffer_and_works_again() -> None:
    limits = Limits(receive_s=0.2)
    with serving(Models(), limits=limits) as server, Wire(server) as wire:
        for _ in range(2):
            assert wire.ask(get("/v2")).status == 200
            until(lambda: not any(getattr(one, "_buffer", 0) for one in room(server).connections))


def test_bodies_are_bounded_over_all_connections(tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    many = infer(bundles.samples(2000))
    with serving(models, limits=Limits(total_bytes=len(many) + 1000)) as server:
        with Wire(server) as first, Wire(server) as second:
            first.send(many[:-10])
            until(lambda: room(server).held_bytes > 0)
            assert second.ask(many).status == 503
            assert output(first.ask(many[-10:])).shape == (2000, bundles.CLASSES)
        with Wire(server) as third:
            assert third.ask(many).status == 200
            assert room(server).held_bytes == 0


def test_a_body_of_a_client_that_left_takes_no_room(tmp_path: Path) -> None:
    many = infer(bundles.samples(2000))
    with serving(Models()) as server:
        with Wire(server) as wire:
            wire.send(many[:-10])
            until(lambda: room(server).held_bytes > 0)
        until(lambda: room(server).held_bytes == 0)


def test_answers_that_nobody_takes_count_as_much_as_bodies() -> None:
    limits = Limits(total_bytes=1, head_bytes=1 << 16)
    with serving(Models(), limits=limits) as server, Wire(server) as wire:
        with Wire(server) as lazy:
            sender = threading.Thread(target=flood, args=(lazy,))
            sender.start()
            until(lambda: room(server).is_full)
            assert wire.ask(get("/v2")).status == 503
            lazy.socket.shutdown(socket.SHUT_RDWR)
            sender.join()
        until(lambda: room(server).held_bytes == 0)
        with Wire(server) as other:
            assert other.ask(get("/v2")).status == 200


def flood(wire: Wire) -> None:
    """Ask, and ask, and take no answer."""
    with contextlib.suppress(OSError):
        wire.send(get("/metrics") * 100_000)


def room(server: Server) -> Room:
    assert server._service is not None
    return server._service.room
