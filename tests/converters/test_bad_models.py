"""Models that naive conversion spoils or that cannot be built: a right artefact, or one refusal."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from onnxruntime import quantization

from edgekit.bundle import Bundle
from edgekit.errors import DataError, ModelError
from edgekit.recipe import PassSpec, Recipe
from edgekit_converters.commands import build as build_command
from edgekit_converters.normal.infer import infer
from edgekit_converters.report import BundleReport
from tests.converters.building import HERE, build_for, convnet, images, write_data, write_model
from tests.converters.graph_models import Arrays, model, node, noise, operators
from tests.converters.odd_models import SAMPLES, branched, graph, recurrent, samples, tensor
from tests.converters.passes_models import inside_an_if

DYNAMIC = Recipe(passes=(PassSpec(name="dynamic-int8"),))


def shipped(found: BundleReport, name: str) -> onnx.ModelProto:
    assert found.path is not None
    with Bundle.open(found.path) as opened:
        return onnx.load_from_string(opened.read(opened.manifest.variant(name).artifact))


# What quantises badly, or not at all.


def test_an_old_opset_is_quantised_per_channel_and_loads(tmp_path: Path) -> None:
    path = write_model(tmp_path, convnet(opset=12, ir=7))

    found = build_for(HERE, path, tmp_path, data=write_data(tmp_path))

    best = found.variants[0]
    assert (best.name, best.evidence) == ("int8", "executed")
    assert best.agreement is not None
    assert best.agreement >= 0.95
    scales = [t for t in shipped(found, "int8").graph.initializer if list(t.dims) == [16]]
    assert scales


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_layer_stays_in_float_and_its_answers_right(
    kind: str, gates: int, tmp_path: Path
) -> None:
    path = write_model(tmp_path, recurrent(kind, gates))
    data = samples(tmp_path, x=noise(SAMPLES, 12, 1, 8))

    found = build_for(HERE, path, tmp_path, data=data)

    for variant in found.variants:
        assert kind in operators(shipped(found, variant.name))
        assert variant.agreement is not None
        assert variant.agreement >= 0.95
    assert all(entry.agreement is None or entry.agreement > 0.8 for entry in found.tried)


def test_work_inside_an_if_ships_in_float_and_is_named(tmp_path: Path) -> None:
    path = write_model(tmp_path, branched())
    data = samples(tmp_path, x=noise(SAMPLES, 64), sr=np.full(SAMPLES, 16000))

    found = build_for(HERE, path, tmp_path, data=data, recipe=Recipe())

    assert [variant.name for variant in found.variants] == ["float"]
    assert found.gate.reasons == ("float only: no pass finds anything to do on this model",)
    assert found.notes[-1] == (
        "work inside of If 'branch', such as MatMul 'only', stays as it is:"
        " --fix sr=VALUE would resolve it"
    )


def test_a_branch_that_is_decided_is_quantised(tmp_path: Path) -> None:
    path = write_model(tmp_path, branched())
    data = samples(tmp_path, x=noise(SAMPLES, 64))
    recipe = Recipe(passes=(PassSpec(name="static-int8"),), constants={"sr": 16000})

    found = build_for(HERE, path, tmp_path, data=data, recipe=recipe)

    assert not any("If" in note for note in found.notes)
    assert "If" not in operators(shipped(found, "float"))
    assert any(entry.agreement is not None for entry in found.tried)


def test_a_pass_that_cannot_do_what_the_recipe_asks_is_listed(tmp_path: Path) -> None:
    path = write_model(tmp_path, inside_an_if())
    shapes = {value.name: value for value in inside_an_if().graph.input}
    data = samples(tmp_path, **{name: sample_of(value) for name, value in shapes.items()})

    found = build_for(HERE, path, tmp_path, data=data)

    assert [rejected.scheme for rejected in found.rejected] == ["static-int8"]
    assert found.gate.reasons == ("float only: every other scheme was rejected",)


def test_half_precision_that_would_not_make_a_model_smaller_is_rejected_with_the_constant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = write_model(tmp_path, with_huge_weights())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("passes: [{name: fp16}]\n")

    words = [str(path), "--profile", "jetson", "--recipe", str(recipe), "--out", str(tmp_path)]
    run = CliRunner().invoke(build_command, [*words, "--json"])

    assert run.exit_code == 0, run.output
    (found,) = json.loads(run.stdout)["bundles"]
    assert {variant["scheme"] for variant in found["variants"]} == {"source"}
    whys = [lost["reason"] for lost in found["rejected"] if lost["scheme"].startswith("fp16")]
    assert any("'head' holds" in why and "which fp16 cannot" in why for why in whys)


def with_huge_weights() -> onnx.ModelProto:
    """The convnet with a head that is nearly all of its bytes, and beyond the range of fp16."""
    changed = convnet()
    (head,) = [each for each in changed.graph.initializer if each.name == "head"]
    values = numpy_helper.to_array(head) * np.float32(1e7)
    head.CopyFrom(numpy_helper.from_array(values, "head"))
    return changed


def test_a_model_that_symbolic_shape_inference_gives_up_on_is_quantised_rightly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text models and PP-OCR do, it cuts rows from a table by a computed length."""
    path = write_model(tmp_path, with_rows_cut_to_the_batch())
    # Where it gives up, it leaves what it has in the current folder.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="Incomplete symbolic shape inference"):
        quantization.shape_inference.quant_pre_process(str(path), str(tmp_path / "ready.onnx"))

    found = build_for(HERE, path, tmp_path, data=write_data(tmp_path))

    best = found.variants[0]
    assert (best.name, best.evidence, best.proven) == ("int8", "executed", True)
    assert best.agreement is not None
    assert best.agreement >= 0.95
    assert "QuantizeLinear" in operators(shipped(found, "int8"))


def with_rows_cut_to_the_batch() -> onnx.ModelProto:
    """The convnet, to whose scores the first rows of a table are added: min(512, N) of them."""
    grown = convnet()
    (product,) = [each for each in grown.graph.node if each.name == "matmul"]
    product.output[0] = "plain"
    grown.graph.node.extend(
        [
            helper.make_node("Shape", ["image"], ["shape"], "shape"),
            helper.make_node("Gather", ["shape", "zero"], ["batch"], "batch"),
            helper.make_node("Min", ["batch", "most"], ["length"], "length"),
            helper.make_node("Unsqueeze", ["length", "begin"], ["end"], "end"),
            helper.make_node("Slice", ["table", "begin", "end"], ["rows"], "rows"),
            helper.make_node("Add", ["plain", "rows"], ["scores"], "add"),
        ]
    )
    constants: Arrays = {
        "zero": np.array(0, np.int64),
        "begin": np.array([0], np.int64),
        "most": np.array(512, np.int64),
        "table": np.zeros((512, 10), np.float32),
    }
    grown.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    return grown


def test_shapes_that_cannot_be_inferred_are_said_in_a_note_and_the_model_is_kept() -> None:
    """A node of another domain that the model does not import."""
    strange = convnet()
    (relu,) = [each for each in strange.graph.node if each.name == "relu2"]
    relu.op_type, relu.domain = "Gelu", "com.microsoft"
    before = [each.SerializeToString() for each in strange.graph.node]
    notes: list[str] = []

    infer(strange, notes)

    (note,) = notes
    assert note.startswith("shapes inside the model are not known: ")
    assert "relu2" in note
    assert [each.SerializeToString() for each in strange.graph.node] == before


def sample_of(value: onnx.ValueInfoProto) -> Any:
    kind = value.type.tensor_type
    sizes = [dim.dim_value or 1 for dim in kind.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return noise(SAMPLES, *sizes).astype(dtype)


class Pictures(quantization.CalibrationDataReader):  # type: ignore[misc]
    """The first digits, one by one."""

    def __init__(self) -> None:
        pictures, _ = images()
        self._left: Iterator[Arrays] = iter([{"image": pictures[i : i + 1]} for i in range(8)])

    def get_next(self) -> Arrays | None:
        return next(self._left, None)


def as_pairs(source: Path, target: Path) -> None:
    quantization.quantize_static(
        source, target, Pictures(), quant_format=quantization.QuantFormat.QDQ
    )


def as_operators(source: Path, target: Path) -> None:
    quantization.quantize_static(
        source, target, Pictures(), quant_format=quantization.QuantFormat.QOperator
    )


def while_running(source: Path, target: Path) -> None:
    quantization.quantize_dynamic(source, target)


@pytest.mark.parametrize("quantise", [as_pairs, as_operators, while_running])
def test_a_model_that_is_quantised_already_ships_as_it_is_and_says_so(
    quantise: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "quantised.onnx"
    with caplog.at_level(logging.CRITICAL):
        quantise(write_model(tmp_path), path)

    found = build_for(HERE, path, tmp_path, data=write_data(tmp_path), recipe=Recipe())

    (variant,) = found.variants
    assert variant.precision.startswith("int8")
    assert variant.agreement == 1.0
    assert any("quantised already, as" in note for note in found.notes)


# Shapes that are wrong, open or odd.


def test_a_batch_that_is_fixed_gives_way_to_the_samples(tmp_path: Path) -> None:
    path = write_model(tmp_path, convnet(batch=10))

    found = build_for(HERE, path, tmp_path, data=write_data(tmp_path))

    assert [variant.name for variant in found.variants] == ["int8", "float"]
    assert any("declares [10, 1, 8, 8]" in note for note in found.notes)


def test_samples_without_the_batch_axis_of_a_recurrent_model_are_refused(tmp_path: Path) -> None:
    source = recurrent("LSTM", 4)
    source.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "N"
    path = write_model(tmp_path, source)
    data = samples(tmp_path, x=noise(SAMPLES, 12, 8))

    with pytest.raises(DataError, match=r"'x' have shape \[160, 12, 8\].* \[12, -1, 8\]"):
        build_for(HERE, path, tmp_path, data=data)


def test_a_model_made_for_one_shape_names_what_holds_it(tmp_path: Path) -> None:
    source = model(
        [node("Reshape", ["x", "to"], ["a"], "flat"), node("MatMul", ["a", "w"], ["y"], "head")],
        {"to": np.array([-1, 192]), "w": noise(192, 4)},
        shape=("N", 3, 8, 8),
        output=("N", 4),
    )
    data = samples(tmp_path, x=noise(SAMPLES, 3, 9, 9))

    with pytest.raises(ModelError, match="Reshape 'flat'"):
        build_for(HERE, write_model(tmp_path, source), tmp_path, data=data)


def test_a_shape_that_is_asked_for_is_not_replaced_by_the_samples(tmp_path: Path) -> None:
    path = write_model(tmp_path, convnet(batch=10))

    with pytest.raises(DataError, match=r"'image'.* does not fit \[1, 1, 9, 9\]"):
        build_for(
            *(HERE, path, tmp_path),
            data=write_data(tmp_path),
            shapes={"image": (1, 1, 9, 9)},
        )


def test_open_axes_need_samples_or_a_shape(tmp_path: Path) -> None:
    source = model(
        [node("GlobalAveragePool", ["x"], ["y"])],
        {},
        shape=("N", 3, "H", "W"),
        output=("N", 3, 1, 1),
    )

    with pytest.raises(DataError, match="'x'") as refused:
        build_for(HERE, write_model(tmp_path, source), tmp_path)

    assert refused.value.hint is not None
    assert "--input x=" in refused.value.hint


def test_scalars_go_in_and_come_out(tmp_path: Path) -> None:
    source = graph(
        [node("Mul", ["x", "k"], ["a"], "mul"), node("ReduceSum", ["a"], ["y"], keepdims=0)],
        [tensor("x", [1, 16]), tensor("k", [])],
        [tensor("y", [])],
    )
    data = samples(tmp_path, x=noise(SAMPLES, 16), k=noise(SAMPLES, seed=6))

    found = build_for(HERE, write_model(tmp_path, source), tmp_path, data=data, recipe=Recipe())

    (variant,) = found.variants
    assert variant.max_abs_error == 0


def test_a_weight_without_values_spoils_nothing(tmp_path: Path) -> None:
    source = graph(
        [node("MatMul", ["x", "w"], ["y"], "empty")],
        [tensor("x", ["N", 0])],
        [tensor("y", ["N", 10])],
        {"w": np.zeros((0, 10), np.float32)},
    )
    data = samples(tmp_path, x=np.zeros((SAMPLES, 0), np.float32))

    found = build_for(HERE, write_model(tmp_path, source), tmp_path, data=data, recipe=DYNAMIC)

    # Whether a product of nothing is faster in 8 bits is chance.
    assert "float" in [variant.name for variant in found.variants]
    assert {variant.max_abs_error for variant in found.variants} == {0}
