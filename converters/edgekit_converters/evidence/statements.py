"""Statements: in-toto, about what a build took and made, and about what its gate found.

`provenance` has a SLSA v1 predicate and is reproducible: it names what went in by digest, and no
time, path or machine. What the gate found rests on measurements and is not; `test_result` says it
in a statement of its own, which belongs to `reports/`. Both are covered by the bundle's signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edgekit.manifest import Artifact, Manifest, canonical
from edgekit.recipe import Recipe
from edgekit_converters.evidence import BUILD_TYPE, BUILDER, DISTRIBUTION, lock_sha256

Result = Literal["passed", "warned", "failed"]

_STATEMENT = "https://in-toto.io/Statement/v1"
_PROVENANCE = "https://slsa.dev/provenance/v1"
_TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"


def provenance(
    manifest: Manifest,
    artifacts: Mapping[str, Artifact],
    *,
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
    data: str | None,
    base: str | None = None,
    lock: Mapping[str, str],
) -> bytes:
    """What the artefacts were made of, as a SLSA provenance v1 in canonical JSON.

    Args:
        artifacts: by entry of the bundle.
        shapes: input shapes that the caller fixed.
        data: `evidence.data_sha256` of the samples, where there were any.
        base: digest of the earlier bundle whose int8 scales were kept, `sha256:…`.
        lock: versions by distribution, from `evidence.lock`.
    """
    tools = [{"uri": f"pkg:pypi/{name}@{version}"} for name, version in sorted(lock.items())]
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "name": manifest.name,
                "version": manifest.version,
                "profile": manifest.profile.name,
                "recipe": msgspec.to_builtins(recipe),
                "inputs": {name: list(shape) for name, shape in shapes.items()},
            },
            "resolvedDependencies": [
                _material("source", manifest.model.source_sha256),
                *([] if data is None else [_material("data", data)]),
                *([] if base is None else [_material("base", base.removeprefix("sha256:"))]),
                *_configuration(manifest, recipe),
                _material("tool-lock", lock_sha256(lock)),
                *tools,
            ],
        },
        "runDetails": {"builder": {"id": BUILDER, "version": {DISTRIBUTION: lock[DISTRIBUTION]}}},
    }
    return _statement(_PROVENANCE, predicate, artifacts)


def test_result(
    manifest: Manifest,
    artifacts: Mapping[str, Artifact],
    *,
    recipe: Recipe,
    result: Result,
    tests: Mapping[str, Result],
) -> bytes:
    """What the gate found, as an in-toto test result v0.1 in canonical JSON.

    Args:
        artifacts: by entry of the bundle; what was tested.
        recipe: with the budget that they were tested against.
        result: of all; `warned` where there was not enough data to tell.
        tests: result by name, such as `int8: agreement`.
    """

    def named(wanted: Result) -> list[str]:
        return sorted(name for name, found in tests.items() if found == wanted)

    predicate = {
        "result": result.upper(),
        "configuration": _configuration(manifest, recipe),
        "passedTests": named("passed"),
        "warnedTests": named("warned"),
        "failedTests": named("failed"),
    }
    return _statement(_TEST_RESULT, predicate, artifacts)


def _configuration(manifest: Manifest, recipe: Recipe) -> list[dict[str, Any]]:
    """Digests of the canonical JSON of the resolved profile and of the recipe."""
    return [
        _material(name, hashlib.sha256(canonical(value)).hexdigest())
        for name, value in (("profile", manifest.profile), ("recipe", recipe))
    ]


def _statement(
    predicate_type: str, predicate: Mapping[str, Any], artifacts: Mapping[str, Artifact]
) -> bytes:
    subject = [_material(name, artifact.sha256) for name, artifact in sorted(artifacts.items())]
    return canonical(
        {
            "_type": _STATEMENT,
            "subject": subject,
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def _material(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}
