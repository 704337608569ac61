"""The bill of materials: CycloneDX 1.6 with the model, its data, its artefacts and the tools.

It is reproducible: no time, no machine, no path, and a serial number made of the content. So it
holds nothing that was measured; figures are in `reports/`. Tools have the scope `excluded`: they
made the artefacts and are not in the bundle.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from edgekit.manifest import Artifact, Manifest, TensorSpec, canonical
from edgekit.recipe import Licences
from edgekit_converters.evidence import BUILDER, DISTRIBUTION, licences, lock_sha256

_MODEL = "model"
_DATA = "data"
_DATA_HASH = "The hash is over names, datatypes, shapes and values of all samples and labels."


def sbom(
    manifest: Manifest,
    artifacts: Mapping[str, Artifact],
    *,
    lock: Mapping[str, str],
    given: Licences,
    data: str | None,
) -> bytes:
    """The bill of materials as canonical JSON; the same arguments give the same bytes.

    Args:
        artifacts: by entry of the bundle.
        lock: versions by distribution, from `evidence.lock`; they are installed.
        given: licences that the recipe names, checked.
        data: `evidence.data_sha256` of the samples, where there were any.
    """
    model = _model(manifest, given, lock)
    files = [_file(name, artifact) for name, artifact in artifacts.items()]
    materials = files if data is None else [*files, _samples(data, given)]
    bom = Bom(components=[*materials, *(_tool(*item) for item in lock.items())])
    bom.metadata.component = model
    bom.metadata.tools.components.add(_builder(lock))
    bom.register_dependency(model, materials)
    return _reproducible(_completed(bom, manifest, has_data=data is not None))


def _completed(bom: Bom, manifest: Manifest, *, has_data: bool) -> dict[str, Any]:
    """The document, with the parts of CycloneDX 1.6 that the library has no classes for."""
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    parameters: dict[str, Any] = {
        "inputs": [{"format": _signature(spec)} for spec in manifest.model.inputs],
        "outputs": [{"format": _signature(spec)} for spec in manifest.model.outputs],
    }
    if has_data:
        parameters["datasets"] = [{"ref": _DATA}]
    document["metadata"]["component"]["modelCard"] = {"modelParameters": parameters}
    for component in document["components"]:
        if component["type"] == ComponentType.DATA.value:
            component["data"] = [{"type": "dataset", "name": _DATA}]
    return document


def _reproducible(document: dict[str, Any]) -> bytes:
    del document["metadata"]["timestamp"], document["serialNumber"]
    digest = hashlib.sha256(canonical(document)).hexdigest()
    document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, f"{BUILDER}/{digest}").urn
    return canonical(document)


def _model(manifest: Manifest, given: Licences, lock: Mapping[str, str]) -> Component:
    facts = {
        "edgekit:profile": manifest.profile.name,
        "edgekit:tool-lock-sha256": lock_sha256(lock),
    }
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_MODEL,
        name=manifest.name,
        version=manifest.version,
        hashes=[_sha256(manifest.model.source_sha256)],
        licenses=licences.of_text(given.model),
        properties=[Property(name=name, value=value) for name, value in facts.items()],
    )


def _samples(sha256: str, given: Licences) -> Component:
    return Component(
        type=ComponentType.DATA,
        bom_ref=_DATA,
        name=_DATA,
        description=_DATA_HASH,
        hashes=[_sha256(sha256)],
        licenses=licences.of_text(given.data),
    )


def _file(name: str, artifact: Artifact) -> Component:
    return Component(
        type=ComponentType.FILE, bom_ref=name, name=name, hashes=[_sha256(artifact.sha256)]
    )


def _tool(name: str, version: str) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref=f"pkg:pypi/{name}@{version}",
        name=name,
        version=version,
        scope=ComponentScope.EXCLUDED,
        purl=PackageURL(type="pypi", name=name, version=version),
        licenses=licences.of_distribution(name),
    )


def _builder(lock: Mapping[str, str]) -> Component:
    return Component(
        type=ComponentType.APPLICATION,
        bom_ref=BUILDER,
        name=DISTRIBUTION,
        version=lock[DISTRIBUTION],
    )


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _signature(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.datatype} {list(spec.shape)}"
