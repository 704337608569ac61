"""QNN: what is compiled for Qualcomm's HTP, what the emulation answers, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import profile
from edgekit.errors import BuildError, RecipeError, ToolChainMissing
from edgekit.manifest import TensorSpec
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import normalise
from edgekit_converters.passes import PASSES
from edgekit_converters.targets import Job
from edgekit_converters.targets.engines import answers
from edgekit_converters.targets.onnxruntime_cpu import cpu_options
from edgekit_converters.targets.qnn import EMULATED, TARGET, require_unsigned
from edgekit_converters.toolchains import environments
from tests.converters.chains import needs
from tests.converters.target_jobs import job_of

BOARD = profile.find("qcs6490")
SIZE = 8


def htp() -> EngineSpec:
    return next(engine for engine in BOARD.engines if TARGET.makes_for(engine))


def convnet(*, middle: str = "Relu", batch: int | str = 1) -> onnx.ModelProto:
    """Two convolutions with an operator between them, mean, Gemm: from `x` [batch, 3, 8, 8] to `y`
    [batch, 5]."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "w2": rng.normal(0, 0.1, (8, 8, 3, 3)),
        "w3": rng.normal(0, 0.5, (8, 5)),
        "b3": rng.normal(0, 0.1, 5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1] * 4),
        helper.make_node(middle, ["a"], ["b"], "middle"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "second", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flat"),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return normalise(made, shapes={}, max_opset=21, max_ir=10).model


def samples(count: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def quantised(model: onnx.ModelProto, folder: Path, **options: Option) -> onnx.ModelProto:
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3, SIZE, SIZE)),)
    calibration = Calibration(inputs=inputs, arrays={"x": samples(32)}, scratch=folder)
    static = PASSES.get("static-int8")
    step = static.step({"style": "qnn", **options})
    return static.apply(model, step, calibration=calibration)


def saved(model: onnx.ModelProto, folder: Path, name: str = "model") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


def job(folder: Path, *, batch: int = 1) -> Job:
    return job_of(
        BOARD,
        htp(),
        folder,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(batch, 3, SIZE, SIZE)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(batch, 5)),),
    )


def test_it_makes_for_the_htp_and_for_no_cpu() -> None:
    assert [TARGET.makes_for(engine) for engine in BOARD.engines] == [True, False, False]


def test_its_graphs_round_the_output_too_and_keep_the_input_as_it_is(tmp_path: Path) -> None:
    model = quantised(convnet(), tmp_path)
    plain = quantised(convnet(), tmp_path, style="onnxruntime")

    assert {node.op_type for node in model.graph.node if "y" in node.output} == {"DequantizeLinear"}
    assert {node.op_type for node in plain.graph.node if "y" in node.output} == {"Gemm"}
    assert "Pad" not in {node.op_type for node in model.graph.node}
    assert "Pad" in {node.op_type for node in plain.graph.node}


def test_every_node_is_offered_to_be_quantised() -> None:
    static = PASSES.get("static-int8")

    offers = static.offers({}, model=convnet(), engine=htp(), style="qnn")

    assert [step.options["only"] for step in offers] == ["all"] * len(offers)
    assert offers[0].precision == "int8-qdq-u8s8"


def test_of_matrix_products_weights_have_one_scale(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.eye(4, 6, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
        [weight],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = normalise(made, shapes={}, max_opset=21, max_ir=10).model
    static = PASSES.get("static-int8")
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(1, 4)),)
    calibration = Calibration(
        inputs=inputs, arrays={"x": samples(4).reshape(-1, 4)}, scratch=tmp_path
    )

    made = static.apply(model, static.step({"style": "qnn"}), calibration=calibration)

    shapes = {t.name: tuple(t.dims) for t in made.graph.initializer}
    assert [shape for name, shape in shapes.items() if name.endswith("w.whole_scale")] == [()]


def test_signed_activations_are_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    model = quantised(convnet(), tmp_path, activations="s8")

    with pytest.raises(BuildError, match="QuantizeLinear 'x_QuantizeLinear' makes signed"):
        TARGET.compile(saved(model, tmp_path), None, job(tmp_path))
    require_unsigned(quantised(convnet(), tmp_path, activations="u16"))


def test_what_it_does_not_take_is_linted_before_anything_is_compiled() -> None:
    open_sizes = convnet()
    open_sizes.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    fallen = TARGET.coverage(convnet(middle="Selu"), htp())
    refused = TARGET.coverage(open_sizes, htp())

    assert [(f.node, f.operator) for f in fallen.fallback] == [("middle", "Selu")]
    assert fallen.accelerator_macs == 1.0
    assert "dynamic shape [1, 3, -1, 8]" in [f.reason for f in refused.refused]


def test_the_board_is_told_its_own_options_and_has_the_cpu_last() -> None:
    options = TARGET.options(htp())

    first, last = options["providers"]
    assert first["name"] == "QNNExecutionProvider"
    assert first["options"]["backend_path"] == "libQnnHtp.so"
    assert first["options"]["htp_arch"] == "68"
    assert last == {"name": "CPUExecutionProvider"}


def test_it_has_no_steps_of_its_own() -> None:
    assert TARGET.offers({}, model=convnet(), engine=htp()) == ()
    with pytest.raises(RecipeError, match="passes quantise for it"):
        TARGET.step({})


def test_a_missing_tool_chain_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path / "none"))
    model = quantised(convnet(), tmp_path)

    with pytest.raises(ToolChainMissing) as e:
        TARGET.compile(saved(model, tmp_path), None, job(tmp_path))

    assert "edgekit doctor --install qnn" in (e.value.hint or "")


@needs("qnn")
def test_a_context_binary_answers_in_the_emulation_as_its_graph_does(tmp_path: Path) -> None:
    given = saved(quantised(convnet(batch="N"), tmp_path), tmp_path)

    product = TARGET.compile(given, None, job(tmp_path, batch=-1))
    found = TARGET.emulated(product, {"x": samples()}, job(tmp_path, batch=-1))["y"]

    expected = answers(
        given, {"x": samples()}, engine="onnxruntime", options=cpu_options(threads=1)
    )
    step = np.ptp(expected["y"]) / 255
    assert found.shape == (8, 5)
    np.testing.assert_allclose(found, expected["y"], atol=4 * step)
    assert product.placement is not None
    assert (product.placement.accelerator_macs, product.placement.fallback_ops) == (1.0, ())
    assert product.placement.evidence == TARGET.evidence(BOARD, htp()) == "simulated"
    assert product.stand_in == given
    assert TARGET.lint(product.path, htp()) == ()
    assert [node.op_type for node in onnx.load(product.path).graph.node] == ["EPContext"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.htp.onnx", "model.onnx"]


@needs("qnn")
def test_sixteen_bits_are_closer_to_float_than_eight(tmp_path: Path) -> None:
    source = saved(convnet(), tmp_path / "float")
    inputs = {"x": samples(4)}
    exact = answers(source, inputs, engine="onnxruntime", options=cpu_options(threads=1))["y"]
    errors = {}
    for activations in ("u8", "u16"):
        given = saved(quantised(convnet(), tmp_path, activations=activations), tmp_path)
        product = TARGET.compile(given, None, job(tmp_path))
        found = TARGET.emulated(product, inputs, job(tmp_path))["y"]
        errors[activations] = float(np.square(found - exact).sum())

    assert errors["u16"] < errors["u8"]


@needs("qnn")
def test_the_same_graph_gives_the_same_file_wherever_it_lies(tmp_path: Path) -> None:
    model = quantised(convnet(), tmp_path)
    files = []
    for name in ("one", "another"):
        folder = tmp_path / name
        product = TARGET.compile(saved(model, folder, name), None, job(folder))
        files.append(product.path.read_bytes())

    assert files[0] == files[1]


@needs("qnn")
def test_what_falls_back_is_named_and_counted(tmp_path: Path) -> None:
    given = saved(quantised(convnet(middle="Selu"), tmp_path), tmp_path)

    product = TARGET.compile(given, None, job(tmp_path))
    found = TARGET.emulated(product, {"x": samples(2)}, job(tmp_path))["y"]

    assert product.placement is not None
    assert product.placement.fallback_ops == ("Selu",)
    assert product.placement.accelerator_macs == 1.0
    assert "Selu 'middle' runs on the CPU" in product.notes[1]
    assert found.shape == (2, 5)


@needs("qnn")
def test_a_float_graph_for_an_integer_htp_names_nodes_and_the_log(tmp_path: Path) -> None:
    given = saved(convnet(), tmp_path)

    with pytest.raises(BuildError, match=r"does not take Relu 'middle', Gemm 'last' in.*log: /"):
        TARGET.compile(given, None, job(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


BOARD_PROGRAM = """
import sys
sys.path.append(sys.argv[1])  # the provider's package lies in its own environment
import json
import numpy as np
from pathlib import Path
from edgekit_runtime.engines import ENGINES

session = ENGINES.get("onnxruntime").open(Path(sys.argv[2]), options=json.loads(sys.argv[3]))
answers = [session.run({"x": one[None]})["y"][0] for one in np.load(sys.argv[4])]
np.save(sys.argv[5], answers)
print(json.dumps(session.providers))
"""


@needs("qnn")
def test_the_engine_of_the_board_opens_what_was_compiled(tmp_path: Path) -> None:
    path = saved(quantised(convnet(), tmp_path), tmp_path / "m")
    product = TARGET.compile(path, None, job(tmp_path))
    np.save(tmp_path / "x.npy", samples())
    (packages,) = (environments.home() / "qnn").glob("lib/python3.*/site-packages")

    done = subprocess.run(
        [
            *(sys.executable, "-c", BOARD_PROGRAM, str(packages), str(product.path)),
            *(json.dumps({**TARGET.options(htp()), **product.options}), str(tmp_path / "x.npy")),
            str(tmp_path / "y.npy"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[0] == "QNNExecutionProvider"
    emulated = TARGET.emulated(product, {"x": samples()}, job(tmp_path))["y"]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), emulated)


@needs("qnn")
def test_all_samples_are_answered_by_the_graph_that_was_compiled(tmp_path: Path) -> None:
    path = saved(quantised(convnet(), tmp_path), tmp_path / "m")
    product = TARGET.compile(path, None, job(tmp_path))

    found = TARGET.answers(product, {"x": samples(EMULATED + 4)}, job(tmp_path))["y"]

    options = cpu_options(threads=1)
    plain = answers(path, {"x": samples(EMULATED + 4)}, engine="onnxruntime", options=options)
    np.testing.assert_array_equal(found, plain["y"])


@needs("qnn")
def test_a_graph_that_the_emulation_computes_otherwise_is_refused(tmp_path: Path) -> None:
    product = TARGET.compile(
        saved(quantised(convnet(), tmp_path), tmp_path / "m"), None, job(tmp_path)
    )
    # What the emulation holds is then not what the graph on the CPU says.
    other = saved(quantised(convnet(middle="Sigmoid"), tmp_path), tmp_path / "other")

    with pytest.raises(BuildError, match="does not compute what the graph says"):
        TARGET.answers(replace(product, stand_in=other), {"x": samples()}, job(tmp_path))
