"""A bundle that should never serve: rightly signed, and its weights damaged after its goldens.

This is what a broken tool chain or a bad disk on a build machine would make. Digests and signature
are in order, so only running the golden inputs can tell.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from edgekit import bundle
from edgekit.bundle import Bundle
from edgekit.signing import SigningKey


def write_damaged(source: Path, target: Path, *, version: str, key: SigningKey) -> None:
    """Write `source` again as `version`, with the default variant's largest weight reversed."""
    with tempfile.TemporaryDirectory() as scratch, Bundle.open(source) as good:
        folder = good.unpack(Path(scratch) / "unpacked")
        names = [name for name in good.names() if name not in (bundle.MANIFEST, bundle.SIGNATURE)]
        entries: dict[str, bytes | Path] = {
            name: folder / name for name in names if not name.startswith(bundle.REPORTS)
        }
        reports = {name: good.read(name) for name in names if name.startswith(bundle.REPORTS)}
        artifact = good.manifest.variants[0].artifact
        entries[artifact] = _damaged(folder / artifact)
        content = msgspec.structs.replace(good.manifest, version=version)
        bundle.write(target, content, entries=entries, reports=reports, key=key)


def _damaged(artifact: Path) -> bytes:
    model = onnx.load(artifact)
    largest = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(largest)[::-1]
    largest.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), largest.name))
    damaged: bytes = model.SerializeToString(deterministic=True)
    return damaged
