"""Small real bundles: an ONNX network and its golden outputs by onnxruntime, signed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import bundle, tensors
from edgekit.bundle import GOLDEN_INPUTS, GOLDEN_REFERENCE, Bundle
from edgekit.manifest import Golden, Limits, Manifest, Model, Needs, Pipeline, TensorSpec, Variant
from edgekit.profile import DeviceProfile, EngineSpec, Placement, Quality
from edgekit.signing import SigningKey

FEATURES = 16
CLASSES = 4
OPSET = 17
IR = 8

PROFILE = DeviceProfile(
    name="generic-x86_64",
    title="Any x86_64 machine",
    architecture="x86_64",
    engines=(EngineSpec(name="onnxruntime", version="1"),),
    quality=Quality(evidence="executed", checked="2026-11-21", sources=("these tests",)),
)


def mlp(
    widths: Sequence[int] = (FEATURES, 32, CLASSES), *, batchable: bool = True, seed: int = 0
) -> bytes:
    """A multi-layer perceptron, input `x` [n, widths[0]], output `y` [n, widths[-1]].

    Args:
        widths: of its layers; ReLU stands between them.
        batchable: whether n is dynamic; else it is 1.
        seed: of its weights.
    """
    random = np.random.default_rng(seed)
    nodes, weights, current = [], [], "x"
    for layer, (before, after) in enumerate(pairwise(widths)):
        last = layer == len(widths) - 2
        matrix = random.normal(0, before**-0.5, (before, after)).astype(np.float32)
        weights += [
            numpy_helper.from_array(matrix, f"w{layer}"),
            numpy_helper.from_array(random.normal(0, 1, after).astype(np.float32), f"b{layer}"),
        ]
        out = "y" if last else f"h{layer}"
        nodes.append(helper.make_node("Gemm", [current, f"w{layer}", f"b{layer}"], [out]))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{layer}"]))
            current = f"r{layer}"
    return onnx_model(nodes, weights, (widths[0],), (widths[-1],), batchable=batchable)


def convnet(*, size: int = 64, channels: int = 32, layers: int = 6, seed: int = 0) -> bytes:
    """A small convolutional network, input `x` [n, 3, size, size], output `y` [n, channels]."""
    random = np.random.default_rng(seed)
    nodes, weights, current, before = [], [], "x", 3
    for layer in range(layers):
        kernel = random.normal(0, (before * 9) ** -0.5, (channels, before, 3, 3))
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{layer}"))
        stride = 2 if layer % 2 == 0 else 1
        nodes += [
            helper.make_node(
                "Conv", [current, f"w{layer}"], [f"c{layer}"], pads=[1] * 4, strides=[stride] * 2
            ),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        current, before = f"r{layer}", channels
    nodes += [
        helper.make_node("GlobalAveragePool", [current], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    return onnx_model(nodes, weights, (3, size, size), (channels,), batchable=True)


def samples(
    count: int, shape: Sequence[int] = (FEATURES,), *, seed: int = 1
) -> NDArray[np.float32]:
    """Random float32 samples [count, *shape]."""
    return np.random.default_rng(seed).normal(0, 1, (count, *shape)).astype(np.float32)


def directly(model: bytes, inputs: NDArray[Any]) -> NDArray[Any]:
    """Output `y` for input `x`, by onnxruntime itself, one sample at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = [session.run(["y"], {"x": inputs[i : i + 1]})[0] for i in range(len(inputs))]
    return np.concatenate(outputs)


def write(
    folder: Path,
    *,
    name: str = "tiny",
    version: str = "1.0.0",
    key: SigningKey | None = None,
    model: bytes | None = None,
    batchable: bool = True,
    broken_golden: bool = False,
    large: bool = False,
    seed: int = 0,
    samples_count: int = 3,
    variants: Sequence[Variant] = (),
    beside: Mapping[str, bytes] = {},
    extra: Mapping[str, bytes] = {},
    pipeline: Pipeline = Pipeline(),  # noqa: B008 - frozen
    limits: Limits | None = None,
    profile: DeviceProfile = PROFILE,
) -> Path:
    """Write a signed bundle `NAME-VERSION-PROFILE.edge` into `folder` and return its path.

    Args:
        folder: where it goes.
        name: of the model.
        version: of the model.
        key: who signs; a new key by default.
        model: an ONNX file with input `x` and output `y`; by default an `mlp`.
        batchable: whether the default model takes batches.
        broken_golden: puts golden outputs into it that no engine will give.
        large: makes the default model some megabytes large.
        seed: of the default model's weights, so that versions differ.
        samples_count: golden samples.
        variants: further variants, tried before the one that runs.
        beside: further variants that run, behind the default one: each an ONNX file for the same
            tensors that gives something else.
        extra: further entries.
        pipeline: steps before and after the model.
        limits: what its variants may cost on a board.
        profile: of the board that it is for.
    """
    if model is None:
        widths = (FEATURES, 2048, 512, CLASSES) if large else (FEATURES, 32, CLASSES)
        model = mlp(widths, batchable=batchable, seed=seed)
    graph = onnx.load_from_string(model).graph
    inputs, outputs = _spec(graph.input[0]), _spec(graph.output[0])
    golden_inputs = samples(samples_count, inputs.shape[1:])
    golden = directly(model, golden_inputs)
    if broken_golden:
        golden = golden + np.float32(1)
    runs = _variant("float", reference_atol=1e-3)
    others = [_variant(label, reference_atol=1e3) for label in beside]
    content = Manifest(
        name=name,
        version=version,
        profile=profile,
        model=Model(
            source_sha256=hashlib.sha256(model).hexdigest(), inputs=(inputs,), outputs=(outputs,)
        ),
        pipeline=pipeline,
        limits=limits or msgspec.UNSET,
        variants=(*variants, runs, *others),
    )
    entries: dict[str, bytes | Path] = {
        runs.artifact: model,
        "golden/float.safetensors": tensors.encode({"y": golden}),
        GOLDEN_INPUTS: tensors.encode({"x": golden_inputs}),
        GOLDEN_REFERENCE: tensors.encode({"y": golden}),
    }
    entries |= extra
    for variant in variants:
        entries.setdefault(variant.artifact, b"not a model")
    for label, other in beside.items():
        entries[f"artifacts/{label}.onnx"] = other
        entries[f"golden/{label}.safetensors"] = tensors.encode(
            {"y": directly(other, golden_inputs)}
        )
    path = folder / f"{name}-{version}-{profile.name}.edge"
    bundle.write(path, content, entries=entries, reports={}, key=key or SigningKey.generate())
    return path


def unpacked(folder: Path, **options: Any) -> Bundle:
    """Write a bundle as `write` does, and open it as an unpacked folder."""
    path = write(folder, **options)
    with Bundle.open(path) as packed:
        return Bundle.open(packed.unpack(folder / path.stem))


def onnx_model(
    nodes: Sequence[Any],
    weights: Sequence[Any],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    *,
    batchable: bool,
) -> bytes:
    """A float32 model of these nodes, from `x` to `y`; shapes without the axis of the batch."""
    rows: str | int = "n" if batchable else 1
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, *inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, *outputs])],
        list(weights),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(made, full_check=True)
    return bytes(made.SerializeToString(deterministic=True))


def _variant(name: str, *, reference_atol: float) -> Variant:
    return Variant(
        name=name,
        artifact=f"artifacts/{name}.onnx",
        engine="onnxruntime",
        accelerator="cpu",
        precision="fp32",
        needs=Needs(memory_mb=16, onnx_ir=IR, opset=OPSET),
        placement=Placement(),
        golden=Golden(
            outputs=f"golden/{name}.safetensors",
            atol=1e-4,
            rtol=1e-4,
            reference_atol=reference_atol,
        ),
    )


def _spec(value: Any) -> TensorSpec:
    shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
    return TensorSpec(name=value.name, datatype="FP32", shape=shape)
