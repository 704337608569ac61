"""ONNX artefacts as drivers run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from edgekit_converters.pinned.files import Exposed, Opened
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import SampleArrays, iter_batches

DRIVER = "onnxruntime"


def opened(path: Path, inputs: SampleArrays, outputs: Sequence[str]) -> Opened:
    """The file with samples, raising `EngineError` where onnxruntime here does not open it."""
    session = ENGINES.get("onnxruntime").open(path, options={})
    try:
        specs = session.inputs
    finally:
        session.close()
    singles = list(iter_batches(specs, inputs, size=1))
    return Opened(
        driver=DRIVER,
        path=path,
        feeds={spec.name: np.stack([one[spec.name] for one in singles]) for spec in specs},
        outputs={name: name for name in outputs},
        shown=lambda _, array: array,
    )


def exposed(path: Path, folder: Path) -> Exposed:
    """A copy with every tensor of the main graph as an output."""
    model = onnx.load_model(path)
    makers = [
        (name, f"{node.op_type} {node.name!r}")
        for node in model.graph.node
        for name in node.output
        if name
    ]
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n, _ in makers if n not in there)
    to = folder / "pinned-exposed.onnx"
    to.write_bytes(model.SerializeToString(deterministic=True))
    return Exposed(path=to, makers=makers)
