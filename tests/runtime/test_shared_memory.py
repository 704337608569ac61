"""System shared memory over HTTP: tensors out of files that clients own, and may change."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit_runtime.serving.address import Address, Tcp, Unix
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server
from edgekit_runtime.serving.settings import Settings
from tests import bundles
from tests.runtime.served import Wire, get, inline, load, post, serving, worker
from tests.runtime.shared_files import File, descriptors, shared_file

SAMPLES = bundles.samples(4)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)
IN_BYTES, OUT_BYTES = bundles.FEATURES * 4, bundles.CLASSES * 4


@pytest.fixture
def file() -> Iterator[File]:
    with shared_file() as made:
        yield made


@pytest.fixture(scope="module", params=[inline, worker])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    table = Models(measure=request.param)
    load(table, tmp_path_factory.mktemp("bundle"))
    return table


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[Server]:
    with serving(models) as running:
        yield running


def register(file: File, name: str, **changed: Any) -> bytes:
    body = {"key": file.key, "byte_size": 256, **changed}
    return post(f"/v2/systemsharedmemory/region/{name}/register", json.dumps(body).encode())


def unregister(name: str | None = None) -> bytes:
    region = "" if name is None else f"/region/{name}"
    return post(f"/v2/systemsharedmemory{region}/unregister", b"")


def status(wire: Wire) -> Any:
    return wire.ask(get("/v2/systemsharedmemory/status")).json


def infer(
    *,
    shape: Sequence[int] = (1, bundles.FEATURES),
    source: dict[str, Any] | None = None,
    target: dict[str, Any] | None = None,
    **tensor: Any,
) -> bytes:
    """A request whose input and output lie in region `r`, one behind the other."""
    source = {"shared_memory_region": "r", "shared_memory_byte_size": IN_BYTES, **(source or {})}
    target = {
        "shared_memory_region": "r",
        "shared_memory_offset": IN_BYTES,
        "shared_memory_byte_size": OUT_BYTES,
        **(target or {}),
    }
    described = {"name": "x", "datatype": "FP32", "shape": shape, "parameters": source, **tensor}
    body = {"inputs": [described], "outputs": [{"name": "y", "parameters": target}]}
    return post("/v2/models/tiny/infer", json.dumps(body).encode())


@pytest.fixture
def wire(server: Server, file: File) -> Iterator[Wire]:
    """A client whose region `r` begins with a sample."""
    file.path.write_bytes(SAMPLES[0].tobytes().ljust(256, b"\0"))
    with Wire(server) as opened:
        assert opened.ask(register(file, "r")).status == 200
        yield opened
        assert opened.ask(unregister()).status == 200


def result(file: File) -> Any:
    return np.frombuffer(file.read()[IN_BYTES : IN_BYTES + OUT_BYTES], dtype=np.float32)


def test_an_inference_reads_and_writes_shared_memory(wire: Wire, file: File) -> None:
    for row in range(3):
        with file.path.open("r+b") as opened:
            opened.write(SAMPLES[row].tobytes())
        answer = wire.ask(infer())

        assert answer.json["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [1, bundles.CLASSES]}
        ]
        np.testing.assert_array_equal(result(file), EXPECTED[row])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (infer(source={"shared_memory_region": "s"}), "no shared memory is registered as region"),
        (infer(target={"shared_memory_region": "s"}), "no shared memory is registered as region"),
        (infer(source={"shared_memory_byte_size": 60}), "'x' has 60 bytes"),
        (infer(source={"shared_memory_offset": 250}), "input 'x': 64 bytes at 250 are not within"),
        (infer(source={"shared_memory_offset": -1}), "input 'x': 64 bytes at -1 are not within"),
        (infer(source={"shared_memory_byte_size": None}), "come together"),
        (infer(target={"shared_memory_offset": 2**63}), "output 'y': 16 bytes at"),
        (infer(target={"shared_memory_byte_size": 8}), "output 'y' has 16 bytes"),
        (infer(target={"classification": 2}), "classification"),
        (infer(source={"binary_data_size": 64}), "both"),
        (infer(data=[0] * 16), "both"),
    ],
)
def test_a_place_that_does_not_fit_is_named(wire: Wire, request_: bytes, message: str) -> None:
    answer = wire.ask(request_)

    assert answer.status == 400
    assert message in answer.error
    assert wire.ask(infer()).status == 200


def test_a_file_that_shrinks_between_two_requests_ends_neither_server_nor_connection(
    wire: Wire, file: File
) -> None:
    assert wire.ask(infer()).status == 200
    os.truncate(file.path, IN_BYTES)
    answer = wire.ask(infer())
    assert (answer.status, "output 'y'" in answer.error) == (400, True)
    os.truncate(file.path, 0)
    answer = wire.ask(infer())
    assert (answer.status, "input 'x'" in answer.error) == (400, True)
    assert "made smaller" in answer.error

    file.path.write_bytes(SAMPLES[1].tobytes().ljust(256, b"\0"))
    assert wire.ask(infer()).status == 200
    np.testing.assert_array_equal(result(file), EXPECTED[1])


def test_regions_outlive_the_connection_that_registered_them(
    wire: Wire, server: Server, file: File
) -> None:
    with Wire(server) as other:
        assert [region["name"] for region in status(other)] == ["r"]
        assert other.ask(infer()).status == 200
    np.testing.assert_array_equal(result(file), EXPECTED[0])


def test_an_unregistered_region_is_gone_and_its_file_is_not(wire: Wire, file: File) -> None:
    assert wire.ask(unregister("r")).status == 200
    assert wire.ask(unregister("r")).status == 200

    assert status(wire) == []
    assert wire.ask(infer()).status == 400
    assert file.path.exists()


def test_a_registration_that_is_not_valid_is_refused(wire: Wire, file: File) -> None:
    assert "byte_size" in wire.ask(register(file, "s", byte_size="many")).error
    assert "$.key" in wire.ask(register(file, "s", key=None)).error
    assert "registered already" in wire.ask(register(file, "r")).error
    assert wire.ask(get("/v2/systemsharedmemory/region/s/status")).status == 400


def test_a_unix_socket_shares_memory_and_another_machine_does_not(
    tmp_path: Path, file: File
) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    listen: list[Address] = [Unix(tmp_path / "socket"), Tcp("0.0.0.0", 0)]
    with serving(models, listen=listen, insecure=True) as server:
        with Wire(server) as wire:
            assert wire.ask(register(file, "r")).status == 200
        outside = _own_address()
        if outside is None:
            pytest.skip("this machine has no address but loopback")
        tcp = server.addresses[1]
        assert isinstance(tcp, Tcp)
        with Wire(server) as wire:
            wire.socket.close()
            wire.socket = socket.create_connection((outside, tcp.port), timeout=10)
            for request in (register(file, "s"), infer(), get("/v2/systemsharedmemory/status")):
                answer = wire.ask(request)
                assert answer.status == 403
                assert "on this machine" in answer.error


def test_a_worker_process_is_given_tensors_of_shared_memory(tmp_path: Path, file: File) -> None:
    models = Models(Settings(workers="process"), measure=inline)
    load(models, tmp_path)
    file.path.write_bytes(SAMPLES[0].tobytes().ljust(256, b"\0"))
    with serving(models) as server, Wire(server) as wire:
        assert wire.ask(register(file, "r")).status == 200
        for _ in range(3):
            assert wire.ask(infer()).status == 200
            np.testing.assert_array_equal(result(file), EXPECTED[0])


def test_a_server_that_ends_forgets_its_regions(tmp_path: Path, file: File) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    before = descriptors()
    with serving(models) as server, Wire(server) as wire:
        assert wire.ask(register(file, "r")).status == 200
    assert descriptors() <= before
    assert file.path.exists()


def _own_address() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: connecting a datagram socket only chooses a route.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        host = str(probe.getsockname()[0])
    return None if host.startswith("127.") else host
