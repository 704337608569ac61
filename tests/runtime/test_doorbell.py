"""The doorbell's protocol: packets that no client of ours would send, and memory of all kinds."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import errors
from edgekit.errors import EdgekitError, EngineError, RequestError, ServingError
from edgekit.manifest import TensorSpec
from edgekit_runtime import doorbell
from edgekit_runtime.client import Client
from edgekit_runtime.doorbell import ANSWER, MAX_PACKET_BYTES, NO_SLOT, REFUSED, RING, Hello, Place
from edgekit_runtime.engines import ENGINES, Binds
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.serving.bell import BellLimits
from edgekit_runtime.serving.mapping import ALIGNMENT, is_left_in_place, lay_out
from edgekit_runtime.serving.models import Models
from tests import bundles
from tests.runtime.bells import SEALS, Hung, Packets, memory_file, refused_or_not, ringing
from tests.runtime.served import inline, load, until


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hung]:
    """A server with the model `tiny`."""
    folder = tmp_path_factory.mktemp("bell")
    models = Models(measure=inline)
    load(models, folder)
    with ringing(models, folder / "bell") as hung:
        yield hung


@pytest.fixture
def bell(hung: Hung) -> Path:
    """Its socket."""
    return hung.path


def answers(bell: Path) -> bool:
    """Whether the server still serves others."""
    with Client(bell) as client:
        return client.open("tiny").run()["y"].shape == (1, 4)


def test_a_stranger_can_write_a_client_from_the_page(bell: Path) -> None:
    inputs = bundles.samples(1)
    with Packets(bell) as packets:
        layout = packets.hello()
        x, y = layout["inputs"][0], layout["outputs"][0]
        fd = memory_file(layout["slot_bytes"] * layout["slots"])
        mine = os.dup(fd)
        assert packets.share(fd) == b"ready"
        os.pwrite(mine, inputs.tobytes(), x["offset"])
        packet = packets.ring()
        found = np.frombuffer(os.pread(mine, y["size_bytes"], y["offset"]), np.float32)
        os.close(mine)

    assert packet == ANSWER.pack(0, 0) + b"1.0.0 float"
    assert np.allclose(found, bundles.directly(bundles.mlp(), inputs)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        (b"", "not valid|closed"),
        (b"{", "not valid"),
        (b"\xff\xfe", "not valid"),
        (b"[" * 5000, "not valid"),
        (b'{"doorbell": 2, "model": "tiny"}', "doorbell"),
        (b'{"model": "tiny", "more": 1}', "more"),
        (b'{"model": "tiny", "rows": 1e400}', "rows"),
        (b'{"model": "tiny", "shapes": {"x": [-1, 16]}}', "shapes"),
        (b'{"model": "tiny", "shapes": {"x": [9999999999999, 16]}}', "shapes"),
        (b'{"model": "tiny", "shapes": {"x": [1099511627776, 16]}}', "may share"),
        (b"x" * (MAX_PACKET_BYTES + 1), "at most"),
    ],
)
def test_a_first_packet_that_is_not_valid_ends_the_connection(
    bell: Path, hello: bytes, message: str
) -> None:
    with Packets(bell) as packets:
        packets.socket.send(hello)
        if hello:
            told = packets.said()
            assert told["kind"] in ("RequestError", "ServingError")
            assert any(part in str(told) for part in message.split("|"))
        assert packets.is_closed()
    assert answers(bell)


def without_seals(size: int) -> list[int]:
    return [memory_file(size, seals=0)]


def that_may_shrink(size: int) -> list[int]:
    return [memory_file(size, seals=fcntl.F_SEAL_GROW)]


def too_small(size: int) -> list[int]:
    return [memory_file(size - 1)]


def that_is_read_only(size: int) -> list[int]:
    return [memory_file(size, seals=SEALS | fcntl.F_SEAL_WRITE)]


def a_device(size: int) -> list[int]:
    return [os.open("/dev/zero", os.O_RDWR)]


def two_files(size: int) -> list[int]:
    return [memory_file(size), memory_file(size)]


def nine_files(size: int) -> list[int]:
    return [memory_file(size) for _ in range(9)]


def none(size: int) -> list[int]:
    return []


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (without_seals, "could shrink"),
        (that_may_shrink, "could shrink"),
        (too_small, "the layout takes"),
        (that_is_read_only, "cannot be mapped"),
        (a_device, "no memory file"),
        (two_files, "one memory file"),
        (nine_files, "at most"),
        (none, "one memory file"),
    ],
)
def test_memory_that_could_harm_the_server_is_refused(
    hung: Hung, bell: Path, made: Any, message: str
) -> None:
    until(lambda: hung.bell.callers == 0)
    held = len(os.listdir("/proc/self/fd"))
    with Packets(bell) as packets:
        layout = packets.hello()
        packet = packets.share(*made(layout["slot_bytes"]))

        assert ANSWER.unpack_from(packet) == (NO_SLOT, REFUSED)
        assert message in refused_or_not(packet)["message"]
        assert packets.is_closed()
    assert answers(bell)
    until(lambda: hung.bell.callers == 0)
    assert len(os.listdir("/proc/self/fd")) == held


def test_a_file_on_a_disk_is_no_memory(bell: Path, tmp_path: Path) -> None:
    with Packets(bell) as packets:
        layout = packets.hello()
        (tmp_path / "file").write_bytes(b"\0" * layout["slot_bytes"])
        packet = packets.share(os.open(tmp_path / "file", os.O_RDWR))

        assert refused_or_not(packet)["kind"] == "RequestError"


def test_memory_cannot_shrink_once_it_is_shared(bell: Path) -> None:
    with Packets(bell) as packets:
        layout = packets.hello()
        fd = memory_file(layout["slot_bytes"])
        mine = os.dup(fd)
        assert packets.share(fd) == b"ready"
        with pytest.raises(PermissionError):
            os.ftruncate(mine, 0)
        os.close(mine)
        assert packets.ring()[: ANSWER.size] == ANSWER.pack(0, 0)


@pytest.mark.parametrize(
    ("ring", "kind"),
    [
        (RING.pack(1, 0, 0), "RequestError"),
        (RING.pack(NO_SLOT, 0, 0), "RequestError"),
        (RING.pack(0, 10, 0), "RequestError"),
    ],
)
def test_a_ring_that_is_not_valid_is_refused_and_the_next_one_is_answered(
    bell: Path, ring: bytes, kind: str
) -> None:
    with Packets(bell) as packets:
        packets.open()
        packets.socket.send(ring)

        assert packets.said()["kind"] == kind
        assert packets.ring()[: ANSWER.size] == ANSWER.pack(0, 0)


@pytest.mark.parametrize("ring", [b"a", b"1234567", b"123456789", b"x" * 5000])
def test_a_ring_of_another_length_ends_the_connection(bell: Path, ring: bytes) -> None:
    with Packets(bell) as packets:
        packets.open()
        packets.socket.send(ring)

        assert "a ring has 8 bytes" in packets.said()["message"]
        assert packets.is_closed()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40), max_size=12), st.booleans())
def test_whatever_packets_come_others_are_served(
    bell: Path, packets: list[bytes], is_open: bool
) -> None:
    with Packets(bell) as stranger:
        if is_open:
            stranger.open()
        with suppress(BrokenPipeError, ConnectionResetError):  # it may be dismissed
            for packet in packets:
                stranger.socket.send(packet)
    assert answers(bell)


def test_a_program_that_reads_no_answers_is_left(bell: Path) -> None:
    with Packets(bell) as packets:
        packets.open()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            packets.flood(RING.pack(5, 0, 0))
    assert answers(bell)


def test_a_program_that_says_nothing_makes_room_for_others(tmp_path: Path) -> None:
    limits = BellLimits(introduction_s=0.05)
    with ringing(Models(), tmp_path / "bell", limits=limits), Packets(tmp_path / "bell") as packets:
        assert packets.said()["kind"] == "DeadlineMissed"
        assert packets.is_closed()


specs = st.builds(
    TensorSpec,
    name=st.uuids().map(str),
    datatype=st.sampled_from([name for name in DTYPES if name != "BYTES"]),
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple).map(lambda s: (-1, *s)),
)


@given(
    st.lists(specs, min_size=1, max_size=5),
    st.lists(specs, max_size=5),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_tensors_never_overlap(
    inputs: list[TensorSpec], outputs: list[TensorSpec], rows: int, slots: int
) -> None:
    layout = lay_out(Hello(model="m", rows=rows, slots=slots), inputs, outputs)

    end = 0
    for place, spec in zip((*layout.inputs, *layout.outputs), (*inputs, *outputs), strict=True):
        assert place.offset >= end
        assert place.offset % ALIGNMENT == 0
        assert place.shape == (rows, *spec.shape[1:])
        end = place.offset + place.size_bytes
    assert end <= layout.slot_bytes
    memory = bytearray(layout.size_bytes)
    for number in range(slots):
        for place in layout.inputs:
            assert place.view(memory, number * layout.slot_bytes).nbytes == place.size_bytes


@pytest.mark.parametrize(
    ("datatype", "shape", "is_left"),
    [
        ("FP32", (1, 4), True),
        ("FP16", (1, 4), True),
        ("FP32", (4,), False),
        ("FP32", (), False),
        ("INT64", (1, 4), False),
        ("BOOL", (1, 4), False),
        ("UINT8", (1, 4, 4, 3), False),
    ],
)
def test_only_values_are_left_where_a_program_can_change_them(
    datatype: Any, shape: tuple[int, ...], is_left: bool
) -> None:
    place = Place(name="x", datatype=datatype, shape=shape, offset=0, size_bytes=16)

    assert is_left_in_place(place) == is_left


@pytest.mark.parametrize(
    "error",
    [
        doorbell.Changed("a", hint="b"),
        errors.Overloaded("a", retry_after_s=3, hint="b"),
        errors.Unavailable("a", retry_after_s=3, hint="b"),
        errors.WorkerLost("a", hint="b"),
        errors.EngineNotInstalled("a", hint="b"),
        errors.AccessDenied("a"),
        errors.UsageError("a"),
    ],
)
def test_an_error_is_the_same_on_the_other_side(error: EdgekitError) -> None:
    told = doorbell.read_refusal(msgspec.json.encode(doorbell.refusal(error))).error()

    assert isinstance(error, type(told)) or type(told) is ServingError
    assert (told.message, told.hint) == (error.message, error.hint)
    assert getattr(told, "retry_after_s", None) == getattr(error, "retry_after_s", None)


@given(st.binary(max_size=200))
def test_what_no_server_says_is_an_error(raw: bytes) -> None:
    for read in (doorbell.read_refusal, doorbell.read_layout):
        with pytest.raises(ServingError):
            read(raw)


def test_a_hello_that_is_not_valid_is_an_error() -> None:
    with pytest.raises(RequestError, match="first packet"):
        doorbell.read_hello(b"{}")


def test_a_bound_run_writes_where_it_was_told_and_ends_with_its_session(tmp_path: Path) -> None:
    (tmp_path / "mlp.onnx").write_bytes(bundles.mlp())
    session = ENGINES.get("onnxruntime").open(tmp_path / "mlp.onnx", options={})
    assert isinstance(session, Binds)
    inputs, outputs = {"x": bundles.samples(2)}, {"y": np.zeros((2, 4), np.float32)}

    run = session.bind(inputs, outputs)
    for scale in (1, 2):
        inputs["x"] *= scale
        run()
        assert np.allclose(outputs["y"], session.run(inputs)["y"], atol=1e-5)
    session.close()
    with pytest.raises(EngineError, match="closed"):
        run()
    with pytest.raises(EngineError, match="closed"):
        session.bind(inputs, outputs)


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (2, 5), (8,)])
def test_a_bound_run_never_writes_beyond_an_output(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "mlp.onnx").write_bytes(bundles.mlp())
    session = ENGINES.get("onnxruntime").open(tmp_path / "mlp.onnx", options={})
    assert isinstance(session, Binds)
    memory = np.full(64, 7, np.float32)
    size = math.prod(shape)

    with pytest.raises(EngineError):
        session.bind({"x": bundles.samples(2)}, {"y": memory[:size].reshape(shape)})()
    assert (memory[size:] == 7).all()
