"""A small bundle that is whole and signed, and what the tests need to damage one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit import bundle, tensors
from edgekit.bundle import GOLDEN_INPUTS, GOLDEN_REFERENCE
from edgekit.manifest import Golden, Manifest, Model, Needs, TensorSpec, Variant
from edgekit.profile import DeviceProfile, EngineSpec, Placement, Quality
from edgekit.signing import SigningKey

ARTIFACT = "artifacts/float.onnx"

PROFILE = DeviceProfile(
    name="sample",
    title="A board for tests",
    architecture="x86_64",
    engines=(EngineSpec(name="onnxruntime", version="1.31"),),
    quality=Quality(evidence="linted", checked="2026-11-01", sources=("made up",)),
)

VARIANT = Variant(
    name="float",
    artifact=ARTIFACT,
    engine="onnxruntime",
    accelerator="cpu",
    precision="fp32",
    needs=Needs(memory_mb=1),
    placement=Placement(),
    golden=Golden(reference_atol=1e-6),
)

MANIFEST = Manifest(
    name="tiny",
    version="1.2.0",
    profile=PROFILE,
    model=Model(
        source_sha256="ab" * 32,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
    ),
    variants=(VARIANT,),
)

ENTRIES: dict[str, bytes | Path] = {
    ARTIFACT: b"not a model, but bytes are all that a bundle sees" * 3,
    GOLDEN_INPUTS: tensors.encode({"x": np.ones((1, 2), np.float32)}),
    GOLDEN_REFERENCE: tensors.encode({"y": np.ones((1, 1), np.float32)}),
}

REPORTS = {"reports/report.json": b'{"latency_ms":null}', "reports/empty.txt": b""}


def write(
    path: Path,
    key: SigningKey,
    *,
    content: Manifest = MANIFEST,
    entries: dict[str, bytes | Path] | None = None,
) -> Path:
    """Write the sample at `path` and return it."""
    chosen = ENTRIES if entries is None else entries
    bundle.write(path, content, entries=chosen, reports=REPORTS, key=key)
    return path


def flip(data: bytes, position: int, mask: int = 0xFF) -> bytes:
    """`data` with one byte changed."""
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]
