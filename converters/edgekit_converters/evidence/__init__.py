"""Evidence: what a bundle was made of and with, in the forms that other tools read.

`bill` writes `sbom.cdx.json`, `statements` write `provenance.json` and `reports/gate.json`, the
gate's test result, whose tests are `outcomes`. This module holds what they share and what the rest
of a build needs to know of its inputs: the versions of the tools, and the identity of the data.
Nothing here carries a time, a path or a machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata

import numpy as np
from packaging.requirements import Requirement

from edgekit.manifest import canonical
from edgekit_converters.data import Samples
from edgekit_converters.rows import chunks
from edgekit_runtime.engines.batches import SampleArray

SBOM = "sbom.cdx.json"
PROVENANCE = "provenance.json"
TEST_RESULT = "reports/gate.json"
BUILD_TYPE = "https://edgekit.dev/build/v1"
BUILDER = "https://edgekit.dev/builder/cli/v1"
DISTRIBUTION = "edgekit-ml"

_TOOLS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime", "onnxslim"),
    "tflite": ("ai-edge-litert",),
    "skops": ("onnx", "onnxruntime", "onnxslim", "scikit-learn", "skl2onnx", "skops"),
    "pt2": ("onnx", "onnxruntime", "onnxscript", "onnxslim", "torch"),
}


def tools(*, formats: Iterable[str]) -> dict[str, str]:
    """Versions of what had a hand in the artefacts, by distribution name.

    Args:
        formats: of the sources: onnx, tflite, skops, pt2.
    """
    names = {DISTRIBUTION, "numpy"}.union(*(_TOOLS[format_] for format_ in formats))
    return {name: metadata.version(name) for name in sorted(names)}


def lock(roots: Iterable[str]) -> dict[str, str]:
    """Versions of the distributions and of all that they require, by normalised name.

    What else is installed beside them has no part in a build and is left out, so that machines
    whose environments were made from one lock file agree.

    Args:
        roots: names of installed distributions, as `tools` gives them.
    """
    versions: dict[str, str] = {}
    waiting = [(_normalised(name), "") for name in roots]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        versions[name] = distribution.version
        found = set(_requirements(distribution, extra=extra)) - seen
        seen |= found
        waiting += found
    return dict(sorted(versions.items()))


def lock_sha256(versions: Mapping[str, str]) -> str:
    """Identity of a tool lock: sha256 of its canonical JSON."""
    return hashlib.sha256(canonical(dict(versions))).hexdigest()


def data_sha256(samples: Samples) -> str:
    """Identity of samples: names, datatypes, shapes and values, labels and groups included."""
    digest = hashlib.sha256()
    arrays: dict[str, SampleArray] = {f"input/{n}": a for n, a in samples.arrays.items()}
    arrays["groups"] = samples.groups
    if samples.labels is not None:
        arrays["labels"] = samples.labels
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        for values in chunks(array):
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _normalised(name: str) -> str:
    """The name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(distribution: metadata.Distribution, *, extra: str) -> Iterator[tuple[str, str]]:
    """What it requires on this platform: names, each without an extra and with those asked for."""
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for wanted in ("", *requirement.extras):
                yield _normalised(requirement.name), wanted
