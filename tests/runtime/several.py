"""Bundles of models with several inputs and outputs, of several datatypes and ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import bundle, tensors
from edgekit.bundle import GOLDEN_INPUTS, GOLDEN_REFERENCE, Bundle
from edgekit.manifest import Datatype, Golden, Manifest, Model, Needs, TensorSpec, Variant
from edgekit.profile import Placement
from edgekit.signing import SigningKey
from edgekit_runtime.engines.tensors import DTYPES
from tests import bundles

ROWS = 3
OUTPUTS = "golden/float.safetensors"

Named = tuple[str, Datatype, tuple[int, ...]]


def mixed(folder: Path) -> Bundle:
    """Two inputs of two datatypes, three outputs of three: `mixed`.

    Inputs `a` FP32 [n, 4] and `b` INT32 [n, 2]; outputs `scores` FP32 [n, 4], which is a plus the
    sum of b, `half` FP16 [n, 4], which is a, and `twice` INT64 [n, 2], which is 2 b.
    """
    nodes = [
        helper.make_node("Cast", ["b"], ["b_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["b_float", "axis"], ["b_sum"], keepdims=1),
        helper.make_node("Add", ["a", "b_sum"], ["scores"]),
        helper.make_node("Cast", ["a"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["b"], ["b_long"], to=TensorProto.INT64),
        helper.make_node("Add", ["b_long", "b_long"], ["twice"]),
    ]
    constants = [numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")]
    random = np.random.default_rng(3)
    golden = {
        "a": random.normal(0, 1, (ROWS, 4)).astype(np.float32),
        "b": random.integers(-9, 9, (ROWS, 2)).astype(np.int32),
    }
    inputs: list[Named] = [("a", "FP32", (-1, 4)), ("b", "INT32", (-1, 2))]
    outputs: list[Named] = [
        ("scores", "FP32", (-1, 4)), ("half", "FP16", (-1, 4)), ("twice", "INT64", (-1, 2)),
    ]  # fmt: skip
    return write(folder, "mixed", nodes, constants, inputs, outputs, golden)


def scalars(folder: Path) -> Bundle:
    """Tensors without a batch axis and without any axis: `scalars`.

    Inputs `gain` FP32 [] and `x` FP32 [3]; outputs `y` FP32 [3], which is gain x, and `total`
    FP32 [], its sum.
    """
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0),
    ]
    random = np.random.default_rng(4)
    golden = {
        "gain": random.normal(0, 1, ROWS).astype(np.float32),
        "x": random.normal(0, 1, (ROWS, 3)).astype(np.float32),
    }
    inputs: list[Named] = [("gain", "FP32", ()), ("x", "FP32", (3,))]
    outputs: list[Named] = [("y", "FP32", (3,)), ("total", "FP32", ())]
    return write(folder, "scalars", nodes, [], inputs, outputs, golden)


def write(
    folder: Path,
    name: str,
    nodes: Sequence[Any],
    constants: Sequence[Any],
    inputs: Sequence[Named],
    outputs: Sequence[Named],
    golden: Mapping[str, NDArray[Any]],
) -> Bundle:
    """An unpacked bundle of a graph, its golden outputs by onnxruntime, sample after sample."""
    graph = helper.make_graph(
        list(nodes), name, list(map(_info, inputs)), list(map(_info, outputs)), list(constants)
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", bundles.OPSET)], ir_version=bundles.IR
    )
    onnx.checker.check_model(made, full_check=True)
    model = made.SerializeToString(deterministic=True)
    expected = directly(model, golden)
    variant = Variant(
        name="float",
        artifact="artifacts/float.onnx",
        engine="onnxruntime",
        accelerator="cpu",
        precision="fp32",
        needs=Needs(memory_mb=16, onnx_ir=bundles.IR, opset=bundles.OPSET),
        placement=Placement(),
        golden=Golden(
            outputs="golden/float.safetensors", atol=1e-4, rtol=1e-4, reference_atol=1e-3
        ),
    )
    manifest = Manifest(
        name=name,
        version="1.0.0",
        profile=bundles.PROFILE,
        model=Model(
            source_sha256=hashlib.sha256(model).hexdigest(),
            inputs=tuple(map(_spec, inputs)),
            outputs=tuple(map(_spec, outputs)),
        ),
        variants=(variant,),
    )
    entries: dict[str, bytes | Path] = {
        variant.artifact: model,
        OUTPUTS: tensors.encode(expected),
        GOLDEN_INPUTS: tensors.encode(golden),
        GOLDEN_REFERENCE: tensors.encode(expected),
    }
    path = folder / f"{name}.edge"
    bundle.write(path, manifest, entries=entries, reports={}, key=SigningKey.generate())
    with Bundle.open(path) as packed:
        return Bundle.open(packed.unpack(folder / name))


def directly(model: bytes, golden: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What onnxruntime itself gives for each sample, put together on axis 0."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    ranks = {value.name: len(value.shape) for value in session.get_inputs()}
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for row in range(ROWS):
        sample = {
            name: array[row : row + 1] if array.ndim == ranks[name] else np.asarray(array[row])
            for name, array in golden.items()
        }
        for name, value in zip(names, session.run(names, sample), strict=True):
            is_batch = any(rank and golden[n].ndim == rank for n, rank in ranks.items())
            found[name].append(value if is_batch else np.asarray(value)[None])
    return {name: np.concatenate(values) for name, values in found.items()}


def _info(named: Named) -> Any:
    name, datatype, shape = named
    kind = helper.np_dtype_to_tensor_dtype(DTYPES[datatype])
    return helper.make_tensor_value_info(name, kind, ["n" if d < 0 else d for d in shape])


def _spec(named: Named) -> TensorSpec:
    name, datatype, shape = named
    return TensorSpec(name=name, datatype=datatype, shape=shape)
