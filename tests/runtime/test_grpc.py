"""gRPC: tritonclient, unchanged, is answered as over HTTP, and what it may not do is refused."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, shared_memory

from edgekit.errors import RequestError
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.grpc import convert
from edgekit_runtime.serving.grpc import inference_pb2 as pb
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime import several
from tests.runtime.served import HOST, inline, load, serving, worker

HERE = Tcp(HOST, 0)
READER, ADMIN = "r" * 32, "a" * 32
SAMPLES = bundles.samples(4)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)
A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.array([[1, 2], [-3, 4]], dtype=np.int32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = Models(measure=inline)
    folder = tmp_path_factory.mktemp("bundles")
    load(models, folder)
    for bundle in (several.mixed(folder), several.scalars(folder)):
        models.activate(models.load(bundle, verified_by="a key"))
    with serving(models, grpc=HERE, limits=Limits(body_bytes=1 << 20)) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(where(server)) as opened:
        yield opened


@pytest.fixture
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(where(server)) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def where(server: Server) -> str:
    assert server.grpc_address is not None
    return server.grpc_address.authority


def tensor(name: str, array: NDArray[Any]) -> Any:
    datatype = {"float32": "FP32", "int32": "INT32"}[array.dtype.name]
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


# What is asked, is answered.


def test_it_gets_what_onnxruntime_gives(client: Any) -> None:
    result = client.infer("tiny", [tensor("x", SAMPLES[:1])], request_id="42")

    np.testing.assert_array_equal(result.as_numpy("y"), EXPECTED[:1])
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "1.0.0", "42")
    assert answer.parameters["variant"].string_param == "float"


def test_several_inputs_and_outputs_of_several_datatypes(client: Any) -> None:
    result = client.infer("mixed", [tensor("b", B), tensor("a", A)])

    np.testing.assert_array_equal(result.as_numpy("scores"), A + B.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(result.as_numpy("half"), A.astype(np.float16))
    np.testing.assert_array_equal(result.as_numpy("twice"), 2 * B.astype(np.int64))


def test_outputs_that_are_asked_for_come_alone_and_as_classes(client: Any) -> None:
    wanted = [
        triton.InferRequestedOutput("twice"),
        triton.InferRequestedOutput("scores", class_count=2),
    ]

    result = client.infer("mixed", [tensor("a", A), tensor("b", B)], outputs=wanted)

    assert [output.name for output in result.get_response().outputs] == ["twice", "scores"]
    assert result.as_numpy("scores")[0].tolist() == [b"6.0:3", b"5.0:2"]


def test_a_tensor_without_axes(client: Any) -> None:
    gain, x = np.array(2, dtype=np.float32), np.array([1, 2, 3], dtype=np.float32)

    result = client.infer("scalars", [tensor("gain", gain), tensor("x", x)])

    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
    assert result.as_numpy("total").tolist() == 12


def test_typed_contents_are_taken(stub: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name="mixed")
    a = request.inputs.add(name="a", datatype="FP32", shape=[2, 4])
    a.contents.fp32_contents.extend(A.ravel())
    b = request.inputs.add(name="b", datatype="INT32", shape=[2, 2])
    b.contents.int_contents.extend(B.ravel())

    answer = triton.InferResult(stub.ModelInfer(request))

    np.testing.assert_array_equal(answer.as_numpy("twice"), 2 * B.astype(np.int64))


def test_the_pages_say_what_those_of_http_say(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", "1.0.0")
    assert "binary_tensor_data" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata("mixed")
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("a", "FP32", [-1, 4]),
        ("b", "INT32", [-1, 2]),
    ]
    config = client.get_model_config("tiny").config
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert config.backend == "onnxruntime"
    listed = client.get_model_repository_index().models
    assert ("tiny", "1.0.0", "READY") in [(one.name, one.version, one.state) for one in listed]


def test_statistics_count_what_came_by_grpc(client: Any) -> None:
    before = client.get_inference_statistics("tiny", "1.0.0").model_stats[0]
    client.infer("tiny", [tensor("x", SAMPLES)])
    after = client.get_inference_statistics("tiny", "1.0.0").model_stats[0]

    assert after.inference_count - before.inference_count == len(SAMPLES)
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert {one.name for one in client.get_inference_statistics().model_stats} == {
        "tiny",
        "mixed",
        "scalars",
    }


def test_a_stream_is_answered_in_its_order_and_outlives_an_error(client: Any) -> None:
    came: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: came.put((result, error)))
    for i in range(4):
        client.async_stream_infer("tiny", [tensor("x", SAMPLES[i : i + 1])], request_id=str(i))
    client.async_stream_infer("none", [tensor("x", SAMPLES)])
    client.async_stream_infer("tiny", [tensor("x", SAMPLES[:1])], request_id="last")
    answers = [came.get(timeout=20) for _ in range(6)]
    client.stop_stream()

    for i, (result, error) in enumerate(answers[:4]):
        assert error is None
        assert result.get_response().id == str(i)
        np.testing.assert_allclose(result.as_numpy("y"), EXPECTED[i : i + 1], atol=1e-6)
    assert "none" in str(answers[4][1])
    assert answers[5][0].get_response().id == "last"


def test_many_calls_at_a_time_are_all_answered(tmp_path: Path) -> None:
    async def ask(address: str) -> list[Any]:
        async with triton_aio.InferenceServerClient(address) as opened:
            calls = [opened.infer("tiny", [tensor("x", SAMPLES[i % 4][None])]) for i in range(64)]
            return list(await asyncio.gather(*calls))

    models = Models(measure=worker)
    load(models, tmp_path)
    with serving(models, grpc=HERE) as server:
        for i, result in enumerate(asyncio.run(ask(where(server)))):
            np.testing.assert_allclose(result.as_numpy("y"), EXPECTED[i % 4][None], atol=1e-6)


def test_grpc_runs_on_asyncios_own_loop_too(tmp_path: Path) -> None:
    models = Models(measure=worker)
    load(models, tmp_path)
    with (
        serving(models, grpc=HERE, loop=asyncio.new_event_loop()) as server,
        triton.InferenceServerClient(where(server)) as client,
    ):
        result = client.infer("tiny", [tensor("x", SAMPLES[:1])])
        np.testing.assert_array_equal(result.as_numpy("y"), EXPECTED[:1])


def test_a_request_id_comes_back(stub: Any) -> None:
    request = service_pb2.ServerLiveRequest()

    _, call = stub.ServerLive.with_call(request, metadata=[("x-request-id", "trip-7")])

    assert ("x-request-id", "trip-7") in [tuple(pair) for pair in call.trailing_metadata()]


# Shared memory.


def test_tensors_in_shared_memory(client: Any) -> None:
    inputs = shared_memory.create_shared_memory_region("in", "/edgekit_test_grpc_in", 64 * 4)
    outputs = shared_memory.create_shared_memory_region("out", "/edgekit_test_grpc_out", 64)
    try:
        shared_memory.set_shared_memory_region(inputs, [SAMPLES])
        client.register_system_shared_memory("in", "/edgekit_test_grpc_in", 64 * 4)
        client.register_system_shared_memory("out", "/edgekit_test_grpc_out", 64)
        assert set(client.get_system_shared_memory_status().regions) == {"in", "out"}
        x, y = triton.InferInput("x", [4, 16], "FP32"), triton.InferRequestedOutput("y")
        x.set_shared_memory("in", 64 * 4)
        y.set_shared_memory("out", 64)

        result = client.infer("tiny", [x], outputs=[y])

        assert list(result.get_output("y").shape) == [4, 4]
        assert list(result.get_response().raw_output_contents) == [b""]
        found = shared_memory.get_contents_as_numpy(outputs, np.float32, [4, 4])
        np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
    finally:
        shared_memory.destroy_shared_memory_region(inputs)
        shared_memory.destroy_shared_memory_region(outputs)


def test_a_gpus_memory_is_refused_and_there_is_none(client: Any) -> None:
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="CUDA shared memory is not served"):
        client.register_cuda_shared_memory("r", b"AAAA", 0, 64)


# What is wrong, is told.


def test_errors_have_their_codes(client: Any) -> None:
    for model, inputs, code, named in (
        ("none", [tensor("x", SAMPLES)], "NOT_FOUND", "none"),
        ("tiny", [tensor("z", SAMPLES)], "INVALID_ARGUMENT", "no input 'z'; inputs are x"),
        ("tiny", [tensor("x", SAMPLES[:, :3])], "INVALID_ARGUMENT", "must have shape [-1, 16]"),
        ("tiny", [], "INVALID_ARGUMENT", "input 'x' is missing"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, inputs)
        assert code in caught.value.status()
        assert named in caught.value.message()


def test_loading_what_is_not_installed_and_overrides_are_refused(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.load_model("none")
    with pytest.raises(InferenceServerException, match="as it was signed"):
        client.load_model("tiny", config="{}")


def test_a_message_that_is_too_large_is_refused(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
        client.infer("tiny", [tensor("x", bundles.samples(20_000))])
    assert client.is_server_live()


def test_a_call_that_nobody_waits_for_is_not_run(tmp_path: Path) -> None:
    models = Models(measure=worker)
    served = load(models, tmp_path, model=bundles.convnet())
    image = bundles.samples(1, (3, 64, 64))
    with (
        serving(models, grpc=HERE) as server,
        triton.InferenceServerClient(where(server)) as client,
    ):
        expected = client.infer("tiny", [tensor("x", image)]).as_numpy("y")
        with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
            client.infer("tiny", [tensor("x", image)], client_timeout=0.0001)
        got = client.infer("tiny", [tensor("x", image)]).as_numpy("y")
        np.testing.assert_array_equal(got, expected)
    assert served.queue_depth == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"raw": []}, "no data"),
        ({"raw": [b"1234"]}, "1 entries, 2 inputs"),
        ({"raw": [b"1234", b"5678"]}, "has 4 bytes"),
        ({"timeout": -1}, "timeout must be"),
        ({"priority": "high"}, r"Expected `int`.*priority"),
    ],
)
def test_a_request_that_is_not_valid_is_named(
    stub: Any, change: dict[str, Any], named: str
) -> None:
    request = service_pb2.ModelInferRequest(model_name="mixed")
    request.inputs.add(name="a", datatype="FP32", shape=[2, 4])
    request.inputs.add(name="b", datatype="INT32", shape=[2, 2])
    request.raw_input_contents.extend(change.get("raw", [A.tobytes(), B.tobytes()]))
    for name in ("timeout", "priority"):
        if isinstance(change.get(name), int):
            request.parameters[name].int64_param = change[name]
        elif name in change:
            request.parameters[name].string_param = change[name]

    with pytest.raises(grpc.RpcError, match=named) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("datatype", "field", "values", "named"),
    [
        ("INT8", "int_contents", [1, 300], None),
        ("FP32", "int_contents", [1], "comes in contents.int_contents"),
        ("FP16", "fp32_contents", [1.0], "comes in contents.fp32_contents"),
        ("FP16", None, [], "no typed contents"),
    ],
)
def test_typed_contents_must_be_of_their_datatype(
    datatype: str, field: str | None, values: list[Any], named: str | None
) -> None:
    message = pb.ModelInferRequest(model_name="m")
    one = message.inputs.add(name="x", datatype=datatype, shape=[2])
    one.contents.SetInParent()
    if field is not None:
        getattr(one.contents, field).extend(values)

    if named is None:
        # Whether 300 is an INT8 is checked where JSON's numbers are.
        assert convert.asked(message).typed["x"].tolist() == values
    else:
        with pytest.raises(RequestError, match=named):
            convert.asked(message)


@given(st.binary(max_size=300))
def test_bytes_are_read_as_a_request_or_refused(raw: bytes) -> None:
    message = pb.ModelInferRequest(model_name="m")
    try:
        message.MergeFromString(raw)
    except Exception:  # noqa: BLE001 - protobuf's own refusal, which gRPC answers
        return
    try:
        asked = convert.asked(message)
    except RequestError:
        return

    assert len(asked.request.inputs) == len(message.inputs)


# The protocol.


def test_every_field_is_the_one_that_clients_know() -> None:
    ours = pb.DESCRIPTOR
    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name}
    theirs |= model_config_pb2.DESCRIPTOR.message_types_by_name
    for name, message in ours.message_types_by_name.items():
        assert_alike(message, theirs[name])
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in ours.services_by_name["GRPCInferenceService"].methods:
        known = methods[method.name]
        assert method.input_type.full_name == known.input_type.full_name
        assert method.output_type.full_name == known.output_type.full_name
        assert method.client_streaming == known.client_streaming


def assert_alike(ours: Any, theirs: Any) -> None:
    assert ours.full_name == theirs.full_name
    for field in ours.fields:
        known = theirs.fields_by_name[field.name]
        assert (field.number, field.type) == (known.number, known.type), field.full_name
        assert field.is_repeated == known.is_repeated, field.full_name
    for nested in ours.nested_types:
        assert_alike(nested, theirs.nested_types_by_name[nested.name])


def test_our_messages_and_a_clients_live_in_one_process() -> None:
    ours: Message = pb.ServerLiveResponse(live=True)
    theirs = service_pb2.ServerLiveResponse.FromString(ours.SerializeToString())

    assert theirs.live
    assert type(ours) is not type(theirs)
