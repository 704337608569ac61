"""Pairs of versions for `canary`: real models, really changed, each run on every real sample."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos
from edgekit_runtime.canary.answers import Surface
from edgekit_runtime.canary.bench import Bench
from edgekit_runtime.canary.samples import Sample
from edgekit_runtime.engines import ENGINES, Session

CROPS = 30
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as other networks take it; this one takes (x - 127) / 128."""


class Case(msgspec.Struct, frozen=True):
    """A pair of versions, compared once on each sample of the data.

    Attributes:
        name: what the new version is.
        pool: of each sample.
        scenes: positions of the samples of each scene, in order; each sample its own for digits.
        accuracy: share of samples on which the old and the new version are right.
        model: the new version, as ONNX; not kept in files.
    """

    name: str
    pool: list[Sample]
    scenes: list[list[int]]
    accuracy: tuple[float, float]
    model: bytes = b""


def digits(folder: Path) -> tuple[NDArray[np.float32], list[Case]]:
    """Networks of 64 units on the 8 x 8 digits of scikit-learn; 900 to learn from, 897 to see."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    order = np.random.default_rng(3).permutation(len(images))
    seen, rest = order[:900], order[900:]

    def trained(count: int, *, epochs: int = 300, seed: int = 1) -> onnx.ModelProto:
        network = MLPClassifier((64,), max_iter=epochs, random_state=seed)
        with warnings.catch_warnings():
            # Some of them are to have learnt too little.
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(images[seen[:count]], labels[seen[:count]])
        return _dense(network.coefs_, network.intercepts_)

    old = trained(450)
    models = {
        "the same again": old,
        "learnt from twice the data": trained(900, seed=2),
        "weights of 8 bits": _rounded(old, bits=8),
        "weights of 3 bits": _rounded(old, bits=3),
        "weights of 2 bits": _rounded(old, bits=2),
        "7 epochs": trained(450, epochs=7, seed=4),
        "inputs not divided by 16": _behind(old, scale=[16.0], shift=[0.0], rank=2),
        "light on dark": _behind(old, scale=[-1.0], shift=[1.0], rank=2),
    }
    alone = [[at] for at in range(len(rest))]
    base = _written(folder / "digits.onnx", old)
    samples = images[rest]
    return samples, list(_cases(base, models, samples, labels[rest], alone))


def photographs(folder: Path) -> list[Case]:
    """EfficientNet-Lite0 on 20 photographs with 30 crops each; a scene is one photograph."""
    write_lite0(folder / "lite0.onnx")
    with np.load(write_photos(folder, crops=CROPS)) as file:
        crops, labels, groups = file["input"], file["labels"], file["groups"]
    base = folder / "lite0.onnx"
    old = onnx.load(base)
    shift = [(127 / 255 - mean) / dev for mean, dev in zip(MEAN, DEVIATION, strict=True)]
    scale = [128 / 255 / dev for dev in DEVIATION]
    models = {
        "the same again": old,
        "int8, a scale for each channel": _quantised(base, crops[::40], per_channel=True),
        "int8, a scale for each tensor": _quantised(base, crops[::40], per_channel=False),
        "inputs as for another network": _behind(old, scale=scale, shift=shift, rank=4),
        "everything twice": _twice(old),
    }
    scenes = [np.flatnonzero(groups == group).tolist() for group in np.unique(groups)]
    found = _cases(base, models, crops, labels, scenes)
    return [msgspec.structs.replace(case, model=b"") for case in found]


def _cases(
    base: Path,
    models: Mapping[str, onnx.ModelProto],
    samples: NDArray[np.float32],
    labels: NDArray[np.int64],
    scenes: list[list[int]],
) -> Iterator[Case]:
    """Each new version beside the old one, on the bench that a trial uses."""
    right = _right(base, samples, labels)
    for name, model in models.items():
        path = _written(base.parent / f"{base.stem}-{name.replace(' ', '-')}.onnx", model)
        old, new = _open(base), _open(path)
        rng = np.random.default_rng(0)
        surface = Surface((), old.outputs)
        bench = Bench(old, new, surfaces=(surface, surface), tolerance=0.1, rng=rng)
        asked = old.inputs[0].name
        bench.try_both({asked: samples[:1]})
        pool = [bench.try_both({asked: samples[at : at + 1]}) for at in range(len(samples))]
        old.close()
        new.close()
        yield Case(name, pool, scenes, (right, _right(path, samples, labels)), path.read_bytes())


def _right(path: Path, samples: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    session = _open(path)
    asked, given = session.inputs[0].name, session.outputs[0].name
    found = [session.run({asked: sample[np.newaxis]})[given].argmax() for sample in samples]
    session.close()
    return float((np.array(found) == labels).mean())


def _open(path: Path) -> Session:
    return ENGINES.get("onnxruntime").open(path, options={"threads": 1})


def _written(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def _dense(
    matrices: list[NDArray[np.float64]], biases: list[NDArray[np.float64]]
) -> onnx.ModelProto:
    """Layers of a network with ReLU between them, input `x` [n, 64], scores `y` [n, 10]."""
    nodes, weights, current = [], [], "x"
    for layer, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
        weights.append(numpy_helper.from_array(bias.astype(np.float32), f"b{layer}"))
        out = "y" if layer == len(matrices) - 1 else f"h{layer}"
        nodes.append(helper.make_node("Gemm", [current, f"w{layer}", f"b{layer}"], [out]))
        if out != "y":
            nodes.append(helper.make_node("Relu", [out], [f"r{layer}"]))
            current = f"r{layer}"
    shapes = [("x", len(matrices[0])), ("y", matrices[-1].shape[1])]
    asked, given = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in shapes
    )
    graph = helper.make_graph(nodes, "digits", [asked], [given], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _rounded(model: onnx.ModelProto, *, bits: int) -> onnx.ModelProto:
    """The weights as so many bits hold them, one scale for each matrix."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for weights in made.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.ndim == 2:
            step = np.abs(values).max() / (2 ** (bits - 1) - 1)
            weights.CopyFrom(
                numpy_helper.from_array((np.rint(values / step) * step).astype(np.float32),
                                        weights.name)
            )  # fmt: skip
    return made


def _behind(
    model: onnx.ModelProto, *, scale: list[float], shift: list[float], rank: int
) -> onnx.ModelProto:
    """The model with another preparation before it: x * scale + shift, by channel."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    asked = made.graph.input[0].name
    shape = [1, len(scale)] + [1] * (rank - 2)
    for node in made.graph.node:
        node.input[:] = ["prepared" if name == asked else name for name in node.input]
    for name, values in (("prepare_scale", scale), ("prepare_shift", shift)):
        array = np.array(values, np.float32).reshape(shape)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    made.graph.node.insert(0, helper.make_node("Mul", [asked, "prepare_scale"], ["scaled"]))
    made.graph.node.insert(1, helper.make_node("Add", ["scaled", "prepare_shift"], ["prepared"]))
    return made


def _twice(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model computed twice from the same input, and the mean of both."""
    twin = compose.add_prefix(model, "twin_")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    asked, given = model.graph.input[0].name, model.graph.output[0].name
    for node in twin.graph.node:
        node.input[:] = [asked if name == f"twin_{asked}" else name for name in node.input]
    made.graph.node.extend(twin.graph.node)
    made.graph.initializer.extend(twin.graph.initializer)
    made.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    for node in made.graph.node:
        node.output[:] = ["single" if name == given else name for name in node.output]
    made.graph.node.append(helper.make_node("Add", ["single", f"twin_{given}"], ["both"]))
    made.graph.node.append(helper.make_node("Mul", ["both", "half"], [given]))
    return made


class _Crops(CalibrationDataReader):  # type: ignore[misc]
    """Samples that the quantiser looks at."""

    def __init__(self, name: str, samples: NDArray[np.float32]) -> None:
        self._inputs = iter([{name: sample[np.newaxis]} for sample in samples])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


def _quantised(path: Path, samples: NDArray[np.float32], *, per_channel: bool) -> onnx.ModelProto:
    made = path.with_name(f"{path.stem}-{platform.machine()}-{per_channel}.onnx")
    quantize_static(
        path,
        made,
        _Crops(onnx.load(path).graph.input[0].name, samples),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(made)
