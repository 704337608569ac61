"""The contract of engines for QNN's emulation of the HTP, and what is seen of it as an accelerator.

Runs where onnxruntime-qnn is installed; `test_engine_qnn.py` runs it there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_qnn  # type: ignore[import-not-found]
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import PlacementBroken
from edgekit.manifest import Datatype, Golden, Needs, TensorSpec, Variant
from edgekit.profile import Placement
from edgekit_runtime import placement
from edgekit_runtime.compiled import Compiled, Compiling
from edgekit_runtime.engines import Session, onnx_placement, plugins
from edgekit_runtime.engines.compiling import Usable
from edgekit_runtime.engines.onnx_compile import holds_context
from edgekit_runtime.engines.onnxruntime import ENGINE
from tests.runtime.engine_contract import EngineContract
from tests.runtime.onnx_models import TYPES, save

STEP = 1 / 32
OPTIONS: dict[str, Any] = {
    "providers": [
        {
            "name": "QNNExecutionProvider",
            "options": {
                "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
                "offload_graph_io_quantization": "0",
            },
        }
    ]
}
FLOAT = TensorProto.FLOAT


def quantised(name: str, made: str) -> list[Any]:
    """A pair that rounds to steps of `STEP` between -4 and 4."""
    return [
        helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{made}_q"], name=f"{made}_q"),
        helper.make_node("DequantizeLinear", [f"{made}_q", "s", "z"], [made], name=f"{made}_d"),
    ]


CONSTANTS = [
    numpy_helper.from_array(np.array(STEP, np.float32), "s"),
    numpy_helper.from_array(np.array(128, np.uint8), "z"),
]


def graph(
    path: Path,
    operator: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    shape: Sequence[int],
) -> Path:
    """One operator for each output, between pairs of quantisation."""
    nodes = [node for name in inputs for node in quantised(name, f"{name}_")]
    for kind, name in zip(operator.split(), outputs, strict=True):
        taken = [f"{given}_" for given in inputs]
        nodes.append(helper.make_node(kind, taken, [f"{name}_"], name=f"node_{name}"))
        nodes += quantised(f"{name}_", name)
    return save(
        path,
        nodes,
        [(name, FLOAT, list(shape)) for name in inputs],
        [(name, FLOAT, list(shape)) for name in outputs],
        CONSTANTS,
    )


class TestQnn(EngineContract):
    engine = ENGINE
    options = OPTIONS
    rows = 1
    # A step: the HTP scales by fixed-point numbers, and so rounds some halves the other way.
    atol = STEP

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        return graph(tmp_path / "relu.onnx", "Relu", ["x"], ["y"], shape=[1, 4])

    datatypes = ("INT32", "UINT8")

    def identity(self, folder: Path, datatype: Datatype) -> Path:
        kind = TYPES[datatype]
        shape = numpy_helper.from_array(np.array([2, 3]), "shape")
        return save(
            folder / f"{datatype}.onnx",
            [helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")],
            [("x", kind, [2, 3])],
            [("y", kind, [2, 3])],
            [shape],
        )

    def scalar(self, folder: Path) -> Path | None:
        return None

    def several(self, folder: Path) -> Path:
        return graph(
            folder / "several.onnx", "Add Mul", ["a", "b"], ["sum", "product"], shape=[1, 4]
        )

    def heavy(self, folder: Path) -> Path:
        weights = np.random.default_rng(0).integers(0, 255, (1024, 1024)).astype(np.uint8)
        nodes = [
            *quantised("x", "x_"),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["w_"], name="w_d"),
            helper.make_node("MatMul", ["x_", "w_"], ["y_"], name="product"),
            *quantised("y_", "y"),
        ]
        x, y = ("x", FLOAT, [1, 1024]), ("y", FLOAT, [1, 1024])
        constants = [*CONSTANTS, numpy_helper.from_array(weights, "w")]
        return save(folder / "heavy.onnx", nodes, [x], [y], constants)


def variant(contract: Placement) -> Variant:
    return Variant(
        name="htp",
        artifact="artifacts/htp.onnx",
        engine="onnxruntime",
        accelerator="npu",
        precision="int8-qdq-u8s8",
        options=OPTIONS,
        needs=Needs(memory_mb=1),
        placement=contract,
        golden=Golden(reference_atol=1.0),
    )


def opened(path: Path) -> Session:
    return ENGINE.open(path, options=OPTIONS)


def with_erf(folder: Path) -> Path:
    """y = relu(x), and e = erf(y) that is left to the CPU."""
    nodes = [
        *quantised("x", "x_"),
        helper.make_node("Relu", ["x_"], ["r"], name="relu"),
        *quantised("r", "y"),
        helper.make_node("Erf", ["y"], ["e"], name="erf"),
    ]
    outputs = [("y", FLOAT, [1, 4]), ("e", FLOAT, [1, 4])]
    return save(folder / "erf.onnx", nodes, [("x", FLOAT, [1, 4])], outputs, CONSTANTS)


def test_what_the_htp_takes_is_on_the_accelerator(tmp_path: Path) -> None:
    placed = opened(graph(tmp_path / "m.onnx", "Relu", ["x"], ["y"], shape=[1, 4])).placement

    assert placed is not None
    assert (placed.share, placed.unit, placed.fallback_ops) == (1.0, "macs", ())


def test_a_silent_fallback_is_refused_naming_the_operator(tmp_path: Path) -> None:
    session = opened(with_erf(tmp_path))

    with pytest.raises(PlacementBroken, match="Erf run on the CPU"):
        placement.verify(variant(Placement()), session, alarm=pytest.fail)


def test_a_fallback_that_the_manifest_allows_is_reported(tmp_path: Path) -> None:
    allowed = variant(Placement(fallback_ops=("Erf",)))

    placed = placement.verify(allowed, opened(with_erf(tmp_path)), alarm=pytest.fail)

    assert placed is not None
    assert placed.fallback_ops == ("Erf",)


def test_where_the_manifest_says_alarm_a_fallback_is_served_with_one(tmp_path: Path) -> None:
    alarms: list[str] = []
    lenient = variant(Placement(on_fallback="alarm"))

    placed = placement.verify(lenient, opened(with_erf(tmp_path)), alarm=alarms.append)

    assert placed is not None
    assert "Erf" in alarms[0]


def test_many_sessions_of_one_process_are_all_on_the_accelerator(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", "Relu", ["x"], ["y"], shape=[1, 4])

    shares = [session.placement for session in (opened(path), opened(path), opened(path))]

    assert {placed and placed.share for placed in shares} == {1.0}


def test_the_profile_of_a_run_tells_the_same_as_the_record(tmp_path: Path) -> None:
    path = with_erf(tmp_path)
    settings = onnxruntime.SessionOptions()
    provider = OPTIONS["providers"][0]
    devices = plugins.devices(onnxruntime, provider["name"])
    settings.add_provider_for_devices(devices, provider["options"])
    profile = onnx_placement.Profile(settings)
    session = onnxruntime.InferenceSession(str(path), settings)

    told = profile.placed(session, [TensorSpec(name="x", datatype="FP32", shape=(1, 4))])

    recorded = opened(path).placement
    assert told is not None
    assert recorded is not None
    assert (told.share, told.fallback_ops) == (recorded.share, recorded.fallback_ops)


def test_a_graph_is_compiled_in_the_background_and_found_again(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", "Relu", ["x"], ["y"], shape=[1, 4])
    ended = threading.Event()
    compiled = Compiled(tmp_path / "compiled")

    def prepare() -> Usable | Compiling:
        return compiled.prepare(
            variant(Placement()), path, sha256="0" * 64, done=lambda _key: ended.set()
        )

    first = prepare()
    assert isinstance(first, Compiling)
    assert ended.wait(120)
    found = prepare()
    compiled.close()

    assert isinstance(found, Usable)
    assert holds_context(found.artifact)
    session = ENGINE.open(found.artifact, options=found.options)
    assert session.placement is not None
    assert session.placement.share == 1.0
    y = session.run({"x": np.array([[1, -1, 2, 0.5]], np.float32)})["y"]
    np.testing.assert_allclose(y, [[1, 0, 2, 0.5]], atol=STEP)


def test_what_holds_a_context_already_is_opened_as_it_is(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", "Relu", ["x"], ["y"], shape=[1, 4])
    compilation = ENGINE.compilation(path, options=OPTIONS)
    assert compilation is not None
    compilation.compile(tmp_path)
    made = compilation.usable(tmp_path).artifact

    assert ENGINE.compilation(made, options=OPTIONS) is None
