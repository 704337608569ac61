"""tritonclient, unchanged: what it can ask over HTTP, it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, shared_memory

from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime import several
from tests.runtime.served import HOST, inline, load, port, serving

SAMPLES = bundles.samples(4)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)
A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.array([[1, 2], [-3, 4]], dtype=np.int32)
SCORES = A + B.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = Models(measure=inline)
    folder = tmp_path_factory.mktemp("bundles")
    load(models, folder)
    for bundle in (several.mixed(folder), several.scalars(folder)):
        models.activate(models.load(bundle, verified_by="a key"))
    with serving(models) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(f"{HOST}:{port(server)}") as opened:
        yield opened


def tensor(name: str, array: NDArray[Any], *, binary: bool = True) -> Any:
    datatype = {"float32": "FP32", "int32": "INT32"}[array.dtype.name]
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_it_gets_what_onnxruntime_gives(
    client: Any, binary_in: bool, binary_out: bool | None
) -> None:
    wanted = None
    if binary_out is not None:
        wanted = [triton.InferRequestedOutput("y", binary_data=binary_out)]

    result = client.infer(
        "tiny", [tensor("x", SAMPLES[:1], binary=binary_in)], outputs=wanted, request_id="42"
    )

    np.testing.assert_array_equal(result.as_numpy("y"), EXPECTED[:1])
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1.0.0", "42")
    assert answer["parameters"]["variant"] == "float"


def test_the_asynchronous_client_gets_the_same(server: Server) -> None:
    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(f"{HOST}:{port(server)}") as opened:
            assert await opened.is_model_ready("tiny")
            return await opened.infer("tiny", [tensor("x", SAMPLES[:2])])

    np.testing.assert_array_equal(asyncio.run(ask()).as_numpy("y"), EXPECTED[:2])


def test_it_reads_every_page(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1.0.0")
    assert not client.is_model_ready("tiny", "2.0.0")
    metadata = client.get_model_metadata("mixed")
    assert metadata["inputs"] == [
        {"name": "a", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "b", "datatype": "INT32", "shape": [-1, 2]},
    ]
    assert client.get_model_config("mixed")["output"][2]["data_type"] == "TYPE_INT64"
    index = client.get_model_repository_index()
    assert [(entry["name"], entry["state"]) for entry in index] == [
        ("mixed", "READY"), ("scalars", "READY"), ("tiny", "READY"),
    ]  # fmt: skip
    stats = client.get_inference_statistics("mixed", "1.0.0")["model_stats"]
    assert [(entry["name"], entry["version"]) for entry in stats] == [("mixed", "1.0.0")]
    stats = client.get_inference_statistics("mixed")["model_stats"]
    assert [(entry["name"], entry["version"]) for entry in stats] == [
        ("mixed", "1.0.0"), ("mixed", "1"),
    ]  # fmt: skip
    everything = client.get_inference_statistics()["model_stats"]
    assert [entry["name"] for entry in everything] == ["mixed", "scalars", "tiny"]


def test_it_is_told_which_extensions_there_are(client: Any) -> None:
    server = client.get_server_metadata()

    assert server["name"] == "edgekit"
    assert {
        "binary_tensor_data", "classification", "model_configuration", "model_repository",
        "schedule_policy", "statistics", "system_shared_memory",
    } <= set(server["extensions"])  # fmt: skip


@pytest.mark.parametrize("binary", [True, False])
def test_several_inputs_and_outputs_of_several_datatypes(client: Any, binary: bool) -> None:
    names = ["twice", "scores"] if not binary else ["half", "twice", "scores"]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]

    result = client.infer(
        "mixed", [tensor("b", B, binary=binary), tensor("a", A, binary=binary)], outputs=wanted
    )

    assert [output["name"] for output in result.get_response()["outputs"]] == names
    np.testing.assert_array_equal(result.as_numpy("scores"), SCORES)
    np.testing.assert_array_equal(result.as_numpy("twice"), 2 * B.astype(np.int64))
    if binary:
        np.testing.assert_array_equal(result.as_numpy("half"), A.astype(np.float16))


def test_half_precision_is_not_given_as_json(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("half", binary_data=False)]

    with pytest.raises(InferenceServerException, match="'half' is FP16"):
        client.infer("mixed", [tensor("a", A), tensor("b", B)], outputs=wanted)


@pytest.mark.parametrize("binary", [True, False])
def test_a_tensor_without_dimensions_holds_one_value(client: Any, binary: bool) -> None:
    x = np.array([1, 2, 4], dtype=np.float32)
    wanted = [triton.InferRequestedOutput(n, binary_data=binary) for n in ("y", "total")]

    result = client.infer(
        "scalars",
        [tensor("gain", np.array(0.5, dtype=np.float32), binary=binary),
         tensor("x", x, binary=binary)],
        outputs=wanted,
    )  # fmt: skip

    np.testing.assert_array_equal(result.as_numpy("y"), x / 2)
    assert result.get_output("total")["shape"] == []
    assert result.as_numpy("total") == np.float32(3.5)


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_are_told_instead_of_scores(client: Any, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]

    result = client.infer("mixed", [tensor("a", A), tensor("b", B)], outputs=wanted)

    assert result.get_output("scores")["datatype"] == "BYTES"
    told = [[str(item, "utf-8") if isinstance(item, bytes) else item for item in row]
            for row in result.as_numpy("scores")]  # fmt: skip
    assert told == [["6.0:3", "5.0:2"], ["8.0:3", "7.0:2"]]


def test_priority_timeout_and_strange_parameters_are_taken(client: Any) -> None:
    result = client.infer(
        "tiny",
        [tensor("x", SAMPLES[:1])],
        priority=1,
        timeout=10_000_000,
        parameters={"cascade": 0.5, "variant": "float", "colour": "blue"},
    )

    np.testing.assert_array_equal(result.as_numpy("y"), EXPECTED[:1])


def test_errors_reach_it_as_its_own(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="nothing at /v2/trace/setting"):
        client.get_trace_settings()
    with pytest.raises(InferenceServerException, match="nothing at /v2/logging"):
        client.get_log_settings()
    with pytest.raises(InferenceServerException, match="CUDA shared memory is not served"):
        client.register_cuda_shared_memory("r", b"handle", 0, 64)
    assert client.get_cuda_shared_memory_status() == []
    client.unregister_cuda_shared_memory()


class Memory:
    """A region that tritonclient made, registered for a while."""

    def __init__(self, client: Any, name: str, size_bytes: int) -> None:
        self.client = client
        self.name = name
        key = f"/edgekit-test-{name}"
        self.handle = shared_memory.create_shared_memory_region(name, key, size_bytes)
        client.register_system_shared_memory(name, key, size_bytes)

    def __enter__(self) -> Any:
        return self.handle

    def __exit__(self, *_: object) -> None:
        self.client.unregister_system_shared_memory(self.name)
        shared_memory.destroy_shared_memory_region(self.handle)


def test_tensors_travel_in_its_shared_memory(client: Any) -> None:
    with Memory(client, "in", A.nbytes + B.nbytes) as given, Memory(client, "out", 128) as taken:
        shared_memory.set_shared_memory_region(given, [A, B])
        a = triton.InferInput("a", A.shape, "FP32")
        a.set_shared_memory("in", A.nbytes)
        b = triton.InferInput("b", B.shape, "INT32")
        b.set_shared_memory("in", B.nbytes, offset=A.nbytes)
        scores = triton.InferRequestedOutput("scores")
        scores.set_shared_memory("out", 64)
        twice = triton.InferRequestedOutput("twice")
        twice.set_shared_memory("out", 64, offset=64)
        half = triton.InferRequestedOutput("half")

        # The second comes the short way: the same JSON was seen before.
        for _ in range(2):
            result = client.infer("mixed", [a, b], outputs=[scores, half, twice])

            assert result.get_output("twice") == {
                "name": "twice", "datatype": "INT64", "shape": [2, 2],
            }  # fmt: skip
            got = shared_memory.get_contents_as_numpy(taken, np.float32, A.shape)
            np.testing.assert_array_equal(got, SCORES)
            got = shared_memory.get_contents_as_numpy(taken, np.int64, B.shape, offset=64)
            np.testing.assert_array_equal(got, 2 * B)
            np.testing.assert_array_equal(result.as_numpy("half"), A.astype(np.float16))
        assert {region["name"] for region in client.get_system_shared_memory_status()} == {
            "in", "out",
        }  # fmt: skip
        assert client.get_system_shared_memory_status("out") == [
            {"name": "out", "key": "/edgekit-test-out", "offset": 0, "byte_size": 128}
        ]
        del got
    assert client.get_system_shared_memory_status() == []


def test_all_regions_are_unregistered_at_once(client: Any, tmp_path: Path) -> None:
    with Memory(client, "one", 64), Memory(client, "two", 64):
        client.unregister_system_shared_memory()

        assert client.get_system_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="'one'"):
            client.get_system_shared_memory_status("one")
