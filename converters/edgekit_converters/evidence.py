"""Evidence: what a bundle was made of and with, in the forms that other tools read.

`sbom.cdx.json` is a CycloneDX 1.6 bill of materials with the model and the tools; `provenance.json`
an in-toto Statement with a SLSA v1 predicate: what went in, what came out. Both are reproducible:
the same inputs and tools give the same bytes, so they carry no time, no path and no machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import msgspec
import numpy as np

from edgekit.manifest import Artifact, Manifest, canonical
from edgekit.recipe import Recipe
from edgekit_converters.data import Samples

SBOM = "sbom.cdx.json"
PROVENANCE = "provenance.json"
BUILD_TYPE = "https://edgekit.dev/build/v1"
BUILDER = "https://edgekit.dev/builder/cli/v1"
_DISTRIBUTION = "edgekit-ml"


def tools(*, formats: Iterable[str]) -> dict[str, str]:
    """Versions of what had a hand in the artefacts, by distribution name."""
    names = ["edgekit-ml", "numpy"]
    if "onnx" in formats:
        names += ["onnx", "onnxruntime", "onnxslim"]
    if "tflite" in formats:
        names.append("ai-edge-litert")
    return {name: metadata.version(name) for name in sorted(names)}


def data_sha256(samples: Samples) -> str:
    """Identity of samples: names, datatypes, shapes and values, labels and groups included."""
    digest = hashlib.sha256()
    arrays: dict[str, Any] = {f"input/{name}": array for name, array in samples.arrays.items()}
    arrays |= {"labels": samples.labels, "groups": samples.groups}
    for name in sorted(name for name, array in arrays.items() if array is not None):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.data)
    return digest.hexdigest()


def sbom(manifest: Manifest, artifacts: Mapping[str, Artifact]) -> bytes:
    """The bill of materials, CycloneDX 1.6 JSON."""
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "version": manifest.version,
        "hashes": [{"alg": "SHA-256", "content": manifest.model.source_sha256}],
        "modelCard": {
            "modelParameters": {
                "inputs": [{"format": _signature(spec)} for spec in manifest.model.inputs],
                "outputs": [{"format": _signature(spec)} for spec in manifest.model.outputs],
            }
        },
    }
    files = [
        {
            "type": "file",
            "bom-ref": name,
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": artifact.sha256}],
        }
        for name, artifact in sorted(artifacts.items())
    ]
    libraries = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
        }
        for name, version in sorted(manifest.tools.items())
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": model},
        "components": [*files, *libraries],
        "dependencies": [{"ref": "model", "dependsOn": [file["bom-ref"] for file in files]}],
    }
    return canonical(document)


def provenance(
    manifest: Manifest,
    artifacts: Mapping[str, Artifact],
    *,
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
    data: str | None,
) -> bytes:
    """The in-toto Statement with a SLSA provenance v1 predicate.

    Args:
        shapes: input shapes that the caller fixed.
        data: `data_sha256` of the samples, where there were any.
    """
    materials = [{"name": "source", "digest": {"sha256": manifest.model.source_sha256}}]
    if data is not None:
        materials.append({"name": "data", "digest": {"sha256": data}})
    materials += [
        {"uri": f"pkg:pypi/{name}@{version}"} for name, version in sorted(manifest.tools.items())
    ]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": artifact.sha256}}
            for name, artifact in sorted(artifacts.items())
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "name": manifest.name,
                    "version": manifest.version,
                    "profile": manifest.profile.name,
                    "recipe": msgspec.to_builtins(recipe),
                    "inputs": {name: list(shape) for name, shape in shapes.items()},
                },
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": {_DISTRIBUTION: metadata.version(_DISTRIBUTION)},
                }
            },
        },
    }
    return canonical(statement)


def _signature(spec: Any) -> str:
    return f"{spec.name}: {spec.datatype} {list(spec.shape)}"
