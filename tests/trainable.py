"""A small bundle that devices can train: a network on two clouds of points, with its graphs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from edgekit import bundle, tensors, training
from edgekit.bundle import GOLDEN_INPUTS, GOLDEN_REFERENCE, Bundle
from edgekit.manifest import Golden, Manifest, Model, Needs, TensorSpec, Variant
from edgekit.profile import Placement
from edgekit.signing import SigningKey
from edgekit.tensors import Arrays
from edgekit.training import TrainingSpec
from edgekit_converters.autodiff import SGD, SoftmaxCrossEntropy, build_training
from tests import bundles

NAME = "clouds"
FEATURES, CLASSES = bundles.FEATURES, bundles.CLASSES


def write(folder: Path, *, key: SigningKey, version: str = "1.0.0", momentum: float = 0.9) -> Path:
    """A signed bundle with `training/` entries: input `x` [n, 16], scores `y` [n, 4]."""
    raw = bundles.mlp()
    graphs = build_training(
        onnx.load_from_string(raw), loss=SoftmaxCrossEntropy(), optimiser=SGD(momentum=momentum)
    )
    states = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in graphs.train.graph.input
        if value.name.startswith(training.STATE)
    }
    spec = TrainingSpec(inputs=("x",), parameters=tuple(graphs.parameters), states=states)
    inputs = bundles.samples(3)
    golden = tensors.encode({"y": bundles.directly(raw, inputs)})
    variant = Variant(
        name="float",
        artifact="artifacts/float.onnx",
        engine="onnxruntime",
        accelerator="cpu",
        precision="fp32",
        needs=Needs(memory_mb=16),
        placement=Placement(),
        golden=Golden(reference_atol=1e-3),
    )
    content = Manifest(
        name=NAME,
        version=version,
        profile=bundles.PROFILE,
        model=Model(
            source_sha256=hashlib.sha256(raw).hexdigest(),
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, FEATURES)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, CLASSES)),),
        ),
        variants=(variant,),
    )
    path = folder / f"{NAME}-{version}.edge"
    entries: dict[str, bytes | Path] = {
        variant.artifact: raw,
        GOLDEN_INPUTS: tensors.encode({"x": inputs}),
        GOLDEN_REFERENCE: golden,
        training.TRAIN: graphs.train.SerializeToString(deterministic=True),
        training.EVALUATE: graphs.evaluate.SerializeToString(deterministic=True),
        training.PARAMETERS: tensors.encode(graphs.parameters),
        training.SPEC: msgspec.json.encode(spec),
    }
    bundle.write(path, content, entries=entries, reports={}, key=key)
    return path


def parameters(path: Path) -> Arrays:
    """The weights that a round with this bundle starts from."""
    with Bundle.open(path) as opened:
        return opened.tensors(training.PARAMETERS)


def samples(count: int = 96, *, seed: int = 1) -> dict[str, Any]:
    """Points of one cloud for each class: arrays `x` and `labels`."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    centres = np.random.default_rng(0).normal(0, 1, (CLASSES, FEATURES))
    points = centres[labels] + random.normal(0, 0.5, (count, FEATURES))
    return {"x": points.astype(np.float32), "labels": labels}
