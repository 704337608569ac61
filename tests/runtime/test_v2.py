"""Open Inference Protocol v2 as its own client speaks it, and as nobody should."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import GoldenMismatch, NotServed, RequestError, UsageError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.serving import data, v2
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime.served import Wire, get, infer, inline, load, output, port, post, serving, worker

SAMPLES = bundles.samples(4)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)
X = TensorSpec(name="x", datatype="FP32", shape=(-1, bundles.FEATURES))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, bundles.CLASSES))


@pytest.fixture(scope="module", params=[inline, worker])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    table = Models(measure=request.param)
    load(table, tmp_path_factory.mktemp("bundle"))
    return table


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[Server]:
    with serving(models) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{port(server)}") as open_client:
        yield open_client


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_gets_what_onnxruntime_gives(
    client: Any, binary_in: bool, binary_out: bool | None
) -> None:
    tensor = triton.InferInput("x", [1, bundles.FEATURES], "FP32")
    tensor.set_data_from_numpy(SAMPLES[:1], binary_data=binary_in)
    wanted = None
    if binary_out is not None:
        wanted = [triton.InferRequestedOutput("y", binary_data=binary_out)]

    result = client.infer("tiny", [tensor], outputs=wanted, request_id="42")

    np.testing.assert_array_equal(result.as_numpy("y"), EXPECTED[:1])
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1.0.0", "42")
    assert answer["parameters"]["variant"] == "float"


def test_tritonclient_reads_every_page(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1.0.0")
    assert not client.is_model_ready("tiny", "2.0.0")
    assert client.get_server_metadata()["name"] == "edgekit"
    metadata = client.get_model_metadata("tiny", "1.0.0")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    assert metadata["versions"] == ["1.0.0"]
    assert client.get_model_config("tiny")["input"][0]["data_type"] == "TYPE_FP32"
    assert client.get_model_repository_index() == [
        {"name": "tiny", "version": "1.0.0", "state": "READY"}
    ]
    assert client.get_system_shared_memory_status() == []


def test_statistics_count_what_happened(client: Any, server: Server) -> None:
    def stats() -> dict[str, Any]:
        found: dict[str, Any] = client.get_inference_statistics("tiny")["model_stats"][0]
        return found

    before = stats()
    with Wire(server) as wire:
        wire.ask(infer(SAMPLES[:3]))
        wire.ask(infer(SAMPLES[:1], tensor={"shape": [1, 15]}))
    after = stats()

    def grew(*path: str) -> int:
        old: Any = before
        new: Any = after
        for key in path:
            old, new = old[key], new[key]
        return int(new) - int(old)

    assert grew("inference_count") == 3
    assert grew("execution_count") == 1
    assert grew("inference_stats", "success", "count") == 1
    assert grew("inference_stats", "fail", "count") == 1
    assert grew("inference_stats", "success", "ns") >= grew(
        "inference_stats", "compute_infer", "ns"
    )
    assert grew("inference_stats", "compute_infer", "ns") > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": {"name": "z"}}, "'z'"),
        ({"tensor": {"datatype": "FP64"}}, "'x' must be FP32"),
        ({"tensor": {"shape": [1, 15]}}, "'x' must have shape"),
        ({"tensor": {"shape": [-1, 16]}}, "'x' must have shape"),
        ({"tensor": {"shape": [0, 16]}}, "'x' must have shape"),
        ({"tensor": {"shape": [2, 16]}}, "'x' has 64 bytes"),
        ({"tensor": {"shape": [2**62, 16]}}, "'x' has 64 bytes"),
        ({"tensor": {"shape": [1, 16.5]}}, "shape"),
        ({"tensor": {"parameters": {"binary_data_size": 60}}}, "'x' has 60 bytes"),
        ({"tensor": {"parameters": {"binary_data_size": -64}}}, "'x' has -64 bytes"),
        ({"tensor": {"parameters": {}}}, "'x' has no data"),
        ({"tensor": {"data": [1]}}, "both"),
        ({"tensor": {"parameters": {"shared_memory_region": "r"}}}, "shared memory"),
        ({"inputs": []}, "'x' is missing"),
        ({"outputs": [{"name": "z"}]}, "'z'"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
        ({"parameters": {"variant": "int8"}}, "'int8'"),
        ({"parameters": {"timeout": -1}}, "timeout"),
    ],
)
def test_bad_input_is_named(server: Server, change: dict[str, Any], message: str) -> None:
    with Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1], **change))

        assert answer.status == 400
        assert message in answer.error
        np.testing.assert_array_equal(output(wire.ask(infer(SAMPLES[:1]))), EXPECTED[:1])


def test_bytes_that_nobody_announced_are_refused(server: Server) -> None:
    request = infer(SAMPLES[:1], inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 16],
                                          "data": SAMPLES[0].tolist()}])  # fmt: skip
    with Wire(server) as wire:
        assert "64 bytes follow the JSON" in wire.ask(request).error


def test_a_pinned_variant_answers(server: Server) -> None:
    with Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1], parameters={"variant": "float"}))

    assert answer.json["parameters"] == {"variant": "float"}


def test_metrics_are_prometheus_text(server: Server) -> None:
    with Wire(server) as wire:
        wire.ask(infer(SAMPLES[:1]))
        wire.ask(get("/nothing"))
        answer = wire.ask(get("/metrics"))
    samples = {}
    for line in answer.body.decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            samples[name] = float(value)
    labels = 'model="tiny",version="1.0.0",variant="float"'

    assert answer.headers["content-type"].startswith("text/plain")
    assert samples[f"edgekit_requests_total{{{labels}}}"] >= 1
    count = samples[f"edgekit_request_seconds_count{{{labels}}}"]
    assert samples[f'edgekit_request_seconds_bucket{{{labels},le="+Inf"}}'] == count
    assert samples['edgekit_http_errors_total{status="404"}'] >= 1
    assert samples["process_resident_memory_bytes"] > 1 << 20


def test_an_untrusted_bundle_is_told_of_in_v2(tmp_path: Path) -> None:
    models = Models(measure=inline)
    models.activate(models.load(bundles.unpacked(tmp_path), verified_by=None))
    with serving(models) as server, Wire(server) as wire:
        assert wire.ask(get("/v2")).json["insecure"] == ["tiny 1.0.0"]


def test_the_highest_version_answers_by_default(tmp_path: Path) -> None:
    models = Models(measure=inline)
    for version in ("1.9.0", "1.10.0", "1.10.0-rc.1"):
        load(models, tmp_path, version=version, seed=len(version))
    with serving(models) as server, Wire(server) as wire:
        assert wire.ask(infer(SAMPLES[:1])).json["model_version"] == "1.10.0"
        pinned = infer(SAMPLES[:1], model="tiny/versions/1.9.0")
        assert wire.ask(pinned).json["model_version"] == "1.9.0"
        versions = wire.ask(get("/v2/models/tiny")).json["versions"]
        assert versions == ["1.9.0", "1.10.0-rc.1", "1.10.0"]


def test_a_version_given_twice_is_refused(tmp_path: Path) -> None:
    models = Models(measure=inline)
    served = load(models, tmp_path)

    with pytest.raises(UsageError, match="twice"):
        models.activate(served)
    models.close()


def test_a_model_that_computes_something_else_is_never_served(tmp_path: Path) -> None:
    models = Models(measure=inline)

    with pytest.raises(GoldenMismatch, match="output 'y'"):
        load(models, tmp_path, broken_golden=True)
    assert models.served() == []


@pytest.mark.parametrize("measure", [inline, worker])
def test_swapping_versions_under_load_loses_no_request(tmp_path: Path, measure: Any) -> None:
    models = Models(measure=measure)
    old = load(models, tmp_path, version="1.0.0")
    answers: list[int] = []
    stop = threading.Event()

    def ask(server: Server) -> None:
        with Wire(server) as wire:
            while not stop.is_set():
                answers.append(wire.ask(infer(SAMPLES[:1])).status)

    with serving(models) as server:
        threads = [threading.Thread(target=ask, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(1, 15):
            new = models.load(
                bundles.unpacked(tmp_path, version=f"1.{turn}.0"), verified_by="a key"
            )
            models.activate(new, replace=True)
            assert old.wait_closed(10)
            old = new
        stop.set()
        for thread in threads:
            thread.join()

        assert set(answers) == {200}
        assert [served.version for served in models.served()] == ["1.14.0"]
        assert sum(figure.requests for figure in models.figures()) == len(answers)
        assert models.figures() == []
        models.remove("tiny", "1.14.0")
        with pytest.raises(NotServed, match=r"1\.14\.0"):
            models.remove("tiny", "1.14.0")


class _Page(msgspec.Struct):
    """A JSON tensor as `_Input` takes it."""

    data: msgspec.Raw


def _from_json(values: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
    raw = msgspec.json.decode(json.dumps({"data": values}).encode(), type=_Page).data
    return data.from_json(raw, spec, shape)


NUMERIC = [name for name in DTYPES if name != "BYTES"]


@given(st.data(), st.sampled_from(NUMERIC))
def test_json_data_survives_there_and_back(source: st.DataObject, datatype: Any) -> None:
    shapes = hnp.array_shapes(max_dims=3, max_side=4)
    finite = {"allow_nan": False, "allow_infinity": False}
    options = finite if datatype.startswith("FP") else {}
    array = source.draw(hnp.arrays(DTYPES[datatype], shapes, elements=options or None))
    spec = TensorSpec(name="x", datatype=datatype, shape=array.shape)

    back = _from_json(data.to_json(array, name="x"), spec, array.shape)

    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("UINT8", [256]), ("UINT8", [-1]), ("INT8", [1.5]), ("INT64", [2**63]), ("BOOL", [1]),
        ("FP32", ["1"]), ("FP32", [1e39]), ("FP32", [None]), ("FP32", [[1], [2, 3]]),
        ("FP32", [1, 2]), ("FP32", {}), ("INT32", [True]), ("BYTES", [1]), ("FP16", [70000]),
        ("UINT64", [2**63, 0.5]), ("UINT64", [2**63, -1]),
    ],
)  # fmt: skip
def test_values_that_a_datatype_cannot_hold_are_refused(datatype: Any, values: Any) -> None:
    shape = (len(values),) if datatype == "UINT64" else (1,)
    with pytest.raises(RequestError, match="input 'x'"):
        _from_json(values, TensorSpec(name="x", datatype=datatype, shape=shape), shape)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_strings_survive_there_and_back(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items

    back = data.from_strings(memoryview(data.to_binary(array)), (len(items),), name="x")

    assert back.tolist() == items


@given(st.binary(max_size=60), st.integers(1, 5))
def test_bytes_that_are_no_strings_are_refused(raw: bytes, count: int) -> None:
    try:
        array = data.from_strings(memoryview(raw), (count,), name="x")
    except RequestError:
        return
    assert data.to_binary(array) == raw


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_cannot_carry_must_be_asked_for_in_binary(value: float) -> None:
    with pytest.raises(RequestError, match="NaN or infinity"):
        data.to_json(np.array([value], dtype=np.float32), name="y")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    tensor=st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("x") | json_values,
            "datatype": st.sampled_from(["FP32", "FP99", "BYTES"]) | json_values,
            "shape": st.lists(st.integers(-3, 2**40), max_size=4) | json_values,
            "data": st.lists(st.floats(), max_size=16) | json_values,
            "parameters": st.fixed_dictionaries(
                {}, optional={"binary_data_size": st.integers(-5, 2**66) | json_values}
            ),
        },
    ),
    extra=st.dictionaries(st.sampled_from(["id", "outputs", "parameters"]), json_values),
)
@settings(max_examples=200)
def test_any_json_is_a_form_or_a_clear_error(tensor: Any, extra: dict[str, Any]) -> None:
    raw = json.dumps({**extra, "inputs": [tensor]}).encode()
    try:
        form = v2.read_form(raw, inputs=[X], outputs=[Y])
    except RequestError:
        return
    assert form.rows >= 1
    for slot in form.slots:
        assert slot.size_bytes == form.rows * bundles.FEATURES * 4


@given(pad=st.integers(0, 40), size=st.integers(0, 200))
def test_tensors_lie_where_their_datatype_may(pad: int, size: int) -> None:
    raw = msgspec.json.encode(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16],
                     "parameters": {"binary_data_size": 64}}]}
    )  # fmt: skip
    form = v2.read_form(raw, inputs=[X], outputs=[Y])
    if size != 64:
        with pytest.raises(RequestError, match=f"{size} bytes follow"):
            v2.read_arrays(form, bytes(pad + size), offset=pad, size_bytes=size)
        return
    array = v2.read_arrays(form, bytes(pad) + SAMPLES[0].tobytes(), offset=pad, size_bytes=64)["x"]

    assert array.flags.aligned
    np.testing.assert_array_equal(array[0], SAMPLES[0])


def test_json_answers_a_json_request(server: Server) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16],
                        "data": [SAMPLES[0].tolist()]}]}  # fmt: skip
    with Wire(server) as wire:
        answer = wire.ask(post("/v2/models/tiny/infer", json.dumps(body).encode()))

    assert answer.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(
        np.array(answer.json["outputs"][0]["data"], dtype=np.float32), EXPECTED[0]
    )
