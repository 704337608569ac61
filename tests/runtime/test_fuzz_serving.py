"""Whatever comes, in whatever pieces: one answer or one clear error each, and nothing stays."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.fuzz.targets import TARGETS
from tests.runtime.served import Wire, get, infer, load, output, post, serving, until, worker

SAMPLES = bundles.samples(2)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)
LINGER = struct.pack("ii", 1, 0)


# The pure functions, by the targets of the fuzzer.


def near(name: str) -> SearchStrategy[bytes]:
    """Seeds of a target with a few places changed."""
    target = TARGETS[name]
    pieces = st.binary(max_size=8)
    if target.words:
        pieces |= st.sampled_from(target.words)
    change = st.tuples(st.integers(0, 600), st.integers(0, 20), pieces)

    def changed(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for start, removed, piece in changes:
            seed = seed[:start] + piece + seed[start + removed :]
        return seed

    return st.builds(changed, st.sampled_from(target.seeds), st.lists(change, max_size=4))


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_of_a_target_are_read_or_refused(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=300)
def test_what_lies_near_the_seeds_is_read_or_refused(name: str, data: st.DataObject) -> None:
    TARGETS[name].run(data.draw(near(name)))


@given(raw=st.binary(max_size=200))
@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused(name: str, raw: bytes) -> None:
    TARGETS[name].run(raw)


# A server, and clients that say one thing after another.


class Kind(NamedTuple):
    """A request, and what may come of it.

    Attributes:
        request: its bytes.
        statuses: of the answer.
        is_last: whether the connection is closed after the answer, because what follows could be
            read in two ways.
        is_inference: whether the model counts it.
    """

    request: bytes
    statuses: frozenset[int]
    is_last: bool = False
    is_inference: bool = True


def inference(*statuses: int, **options: object) -> Kind:
    return Kind(infer(SAMPLES, **options), frozenset(statuses))  # type: ignore[arg-type]


def page(request: bytes, status: int) -> Kind:
    return Kind(request, frozenset([status]), is_inference=False)


def last(request: bytes, status: int) -> Kind:
    return Kind(request, frozenset([status]), is_last=True, is_inference=False)


SIZE = SAMPLES.nbytes
IN_REGION = {"binary_data_size": None, "shared_memory_region": "r", "shared_memory_byte_size": SIZE}
KINDS = {
    "right": inference(200),
    "hurried": inference(200, 504, parameters={"timeout": 1}),
    "urgent": inference(200, parameters={"priority": 1, "timeout": 60_000_000}),
    "sure": inference(200, parameters={"cascade": 0.5}),
    "classes": inference(200, outputs=[{"name": "y", "parameters": {"classification": 2}}]),
    "no such variant": inference(404, parameters={"variant": "none"}),
    "negative": inference(400, tensor={"shape": [-1, bundles.FEATURES]}),
    "empty": inference(400, tensor={"shape": [0, bundles.FEATURES]}),
    "overflowing": inference(400, tensor={"shape": [2**62, 2**62]}),
    "wrapping to the right size": inference(400, tensor={"shape": [2**64 + 2, bundles.FEATURES]}),
    "of many dimensions": inference(400, tensor={"shape": [1] * 1000}),
    "of another size": inference(400, tensor={"parameters": {"binary_data_size": SIZE - 4}}),
    "of a negative size": inference(400, tensor={"parameters": {"binary_data_size": -4}}),
    "of no datatype": inference(400, tensor={"datatype": "FP8"}),
    "of another name": inference(400, tensor={"name": "z"}),
    # 403: whose a half-closed connection is cannot be told.
    "in a region that is not there": inference(400, 403, tensor={"parameters": IN_REGION}),
    "no JSON": Kind(post("/v2/models/tiny/infer", b"{"), frozenset([400])),
    "no UTF-8": Kind(
        post(
            "/v2/models/tiny/infer",
            b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,16],"data":["\xff"]}]}',
        ),
        frozenset([400]),
    ),
    "deep": Kind(post("/v2/models/tiny/infer", b'{"inputs":' + b"[" * 5000), frozenset([400])),
    "no such model": page(infer(SAMPLES, model="none"), 404),
    "no such page": page(get("/v2/models/tiny/versions/1.0.0/none"), 404),
    "another method": page(get("/v2/models/tiny/infer", method="DELETE"), 405),
    "a page": page(get("/v2/models/tiny"), 200),
    "chunked": last(get("/v2", "Transfer-Encoding: chunked", method="POST"), 411),
    "two lengths": last(get("/v2", "Content-Length: 0", "Content-Length: 3"), 400),
    "no length": last(get("/v2", "Content-Length: 1e3"), 400),
    "too long": last(get("/v2", f"Content-Length: {10**14}"), 413),
    "an old protocol": last(b"GET /v2 HTTP/0.9\r\n\r\n", 505),
    "a secure protocol": last(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
}


def leave(_: Wire) -> None:
    """Say goodbye as a program does that ends."""


def reset(wire: Wire) -> None:
    """Fall over."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)


ENDS = [leave, reset]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Served]]:
    models = Models(measure=worker)
    model = load(models, tmp_path_factory.mktemp("fuzz"))
    with serving(models) as server:
        yield server, model


def is_empty(server: Server) -> bool:
    """Whether nobody is connected, and nothing is held for anybody."""
    assert server._service is not None
    room = server._service.room
    return not room.connections and room.held_bytes == 0


def counted(model: Served) -> int:
    """Requests to the model that came to some end."""
    now = model.snapshot()
    return now.succeeded + now.failed + now.rejected + now.cancelled


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[start:end] for start, end in pairwise(places)]


scripts = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=12)
cuts = st.lists(st.integers(0, 1 << 16), max_size=6)


@given(script=scripts, cuts=cuts, half_closes=st.booleans())
@settings(max_examples=150)
def test_each_request_has_one_answer_in_its_order(
    served: tuple[Server, Served], script: list[str], cuts: list[int], half_closes: bool
) -> None:
    server, model = served
    before = counted(model)
    kinds = [KINDS[name] for name in script]
    with Wire(server) as wire:
        with suppress(OSError):  # the server may close before it has read everything
            for piece in pieces(b"".join(kind.request for kind in kinds), cuts):
                wire.send(piece)
        if half_closes and not any(kind.is_last for kind in kinds):
            wire.socket.shutdown(socket.SHUT_WR)
        answered = 0
        for name, kind in zip(script, kinds, strict=True):
            answer = wire.answer()
            assert answer.status in kind.statuses, (name, answer.body)
            answered += kind.is_inference
            if name == "right":
                np.testing.assert_allclose(output(answer), EXPECTED, atol=1e-5)
            if answer.status != 200:
                assert answer.error
            if kind.is_last:
                assert answer.headers["connection"] == "close"
                break
        if half_closes or kinds[-1].is_last:
            assert any(kind.is_last for kind in kinds) or wire.is_closed()

    until(lambda: is_empty(server))
    assert counted(model) == before + answered


@given(script=scripts, sent=st.floats(0, 1), reads=st.booleans(), end=st.sampled_from(ENDS))
@settings(max_examples=150)
def test_a_client_that_goes_at_any_point_leaves_nothing(
    served: tuple[Server, Served],
    script: list[str],
    sent: float,
    reads: bool,
    end: Callable[[Wire], None],
) -> None:
    server, model = served
    before = counted(model)
    kinds = [KINDS[name] for name in script]
    raw = b"".join(kind.request for kind in kinds)
    raw = raw[: int(len(raw) * sent)]
    with Wire(server) as wire:
        wire.send(raw)
        if reads and len(raw) >= len(kinds[0].request):
            assert wire.socket.recv(10)
        end(wire)

    until(lambda: is_empty(server))
    assert counted(model) <= before + sum(kind.is_inference for kind in kinds)
    with Wire(server) as other:
        np.testing.assert_allclose(output(other.ask(infer(SAMPLES))), EXPECTED, atol=1e-5)
