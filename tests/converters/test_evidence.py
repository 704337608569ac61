"""What a bundle says of its making: in formats others read, and the same for the same inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from cyclonedx.exception import MissingOptionalDependencyException
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.errors import RecipeError
from edgekit.inspect import inspect
from edgekit.manifest import Artifact
from edgekit.recipe import Budget, Licences, Recipe
from edgekit_converters import evidence, gate
from edgekit_converters.data import Samples
from edgekit_converters.evidence import bill, licences, statements
from edgekit_converters.evidence.outcomes import judged
from edgekit_converters.gate import Figures
from edgekit_converters.rows import Rows, keep
from tests.contract import samples as contract
from tests.contract.test_model_signing import PYTHON, verify
from tests.converters.building import HERE, KEY, build_for, images, write_data, write_model

DATA = "d" * 64
ARTIFACTS = {
    "artifacts/int8.onnx": Artifact(sha256="a" * 64, size_bytes=5),
    "artifacts/float.onnx": Artifact(sha256="b" * 64, size_bytes=9),
}
MANIFEST = msgspec.structs.replace(contract.MANIFEST, tools=evidence.tools(formats=["onnx"]))
LOCK = evidence.lock(MANIFEST.tools)
GIVEN = Licences(model="Apache-2.0", data="CC-BY-4.0 OR LicenseRef-Ours")


def sbom(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"lock": LOCK, "given": GIVEN, "data": DATA, **changes}
    document: dict[str, Any] = json.loads(bill.sbom(MANIFEST, ARTIFACTS, **arguments))
    return document


def installed(
    folder: Path, name: str, *, requires: tuple[str, ...] = (), fields: tuple[str, ...] = ()
) -> None:
    """Metadata of a distribution, as an installer leaves it."""
    lines = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.5", *fields]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    about = folder / f"{name.replace('-', '_')}-1.5.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("\n".join(lines) + "\n\n")


# The bill of materials.


def test_the_bill_follows_the_schema_of_cyclonedx() -> None:
    text = json.dumps(sbom())
    try:
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except MissingOptionalDependencyException:
        pytest.skip("needs cyclonedx-python-lib[json-validation]")

    assert error is None


def test_the_bill_is_read_by_the_library_of_cyclonedx() -> None:
    read: Bom = Bom.from_json(sbom())  # type: ignore[attr-defined]

    model = read.metadata.component
    assert model is not None
    assert (model.name, model.version) == (MANIFEST.name, MANIFEST.version)
    found = {component.name: component for component in read.components}
    assert set(found) == {"data", *ARTIFACTS, *LOCK}
    assert {str(hash_.content) for hash_ in found["artifacts/int8.onnx"].hashes} == {"a" * 64}
    assert str(found["onnx"].purl) == f"pkg:pypi/onnx@{LOCK['onnx']}"


def test_the_bill_holds_the_model_card_and_the_licences_of_model_and_data() -> None:
    document = sbom()

    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["modelCard"]["modelParameters"]["inputs"] == [{"format": "x: FP32 [-1, 2]"}]
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data"}]
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    (data,) = (found for found in document["components"] if found["name"] == "data")
    assert data["hashes"] == [{"alg": "SHA-256", "content": DATA}]
    assert data["licenses"] == [{"expression": GIVEN.data}]


def test_a_bill_without_data_names_none() -> None:
    document = sbom(data=None, given=Licences())

    assert "data" not in [found["name"] for found in document["components"]]
    assert "datasets" not in document["metadata"]["component"]["modelCard"]["modelParameters"]
    assert "licenses" not in document["metadata"]["component"]


def test_the_bill_is_the_same_each_time_and_carries_no_time() -> None:
    document = sbom()

    assert sbom() == document
    assert "timestamp" not in document["metadata"]
    assert sbom(data="e" * 64)["serialNumber"] != document["serialNumber"]


def test_only_writing_the_bill_loads_the_library_of_cyclonedx() -> None:
    code = "import sys, edgekit_converters.evidence.statements; print('cyclonedx' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "False"


# Licences.


@pytest.mark.parametrize(
    "text",
    ["MIT", "Apache-2.0 OR MIT", "LicenseRef-Ours", "GPL-2.0-only WITH Classpath-exception-2.0"],
)
def test_an_spdx_expression_is_a_licence(text: str) -> None:
    licences.check(Licences(model=text, data=text))


@pytest.mark.parametrize(
    "text", ["", "proprietary", "MIT OR", "Apache 2", "LicenseRef Ours", "((("]
)
def test_what_is_no_spdx_expression_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(RecipeError, match=r"licences\.data"):
        licences.check(Licences(model="MIT", data=text))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (("License-Expression: MIT AND 0BSD",), {"expression": "MIT AND 0BSD"}),
        (("License: Apache 2.0",), {"license": {"id": "Apache-2.0"}}),
        (("License: MIT License", "Classifier: License :: OSI Approved :: Apache Software License"),
         {"license": {"id": "MIT"}}),
        (("Classifier: License :: OSI Approved :: MIT License",), {"license": {"id": "MIT"}}),
        (("Classifier: License :: OSI Approved :: BSD License",),
         {"license": {"name": "BSD License"}}),
        (("License: UNKNOWN", "Classifier: License :: OSI Approved"), None),
        ((), None),
    ],
)  # fmt: skip
def test_the_licence_of_a_tool_is_spdx_only_where_it_is_clear(
    fields: tuple[str, ...],
    expected: dict[str, Any] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(tmp_path, "the-tool", fields=fields)
    monkeypatch.syspath_prepend(tmp_path)

    document = sbom(lock={**LOCK, "the-tool": "1.5"})

    (tool,) = (found for found in document["components"] if found["name"] == "the-tool")
    assert tool.get("licenses") == (None if expected is None else [expected])


# The lock.


def test_the_lock_holds_what_is_required_and_nothing_that_lies_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(
        tmp_path, "top-tool", requires=("Part_One>=1", "extras.part[fast]", "nowhere; extra == 'x'")
    )
    installed(tmp_path, "part-one", requires=("top-tool", "absent; python_version < '3'"))
    installed(tmp_path, "extras-part", requires=("quick; extra == 'fast'", "slow; extra == 'slow'"))
    for name in ("quick", "slow", "beside", "nowhere"):
        installed(tmp_path, name)
    monkeypatch.syspath_prepend(tmp_path)

    found = evidence.lock(["Top.Tool"])

    assert found == dict.fromkeys(("extras-part", "part-one", "quick", "top-tool"), "1.5")


def test_the_tools_are_part_of_the_lock() -> None:
    assert MANIFEST.tools.items() <= LOCK.items()


@given(st.dictionaries(st.text("abc-", min_size=1), st.text("0123456789.", min_size=1)))
def test_the_identity_of_a_lock_is_that_of_its_content(versions: dict[str, str]) -> None:
    turned = dict(reversed(versions.items()))

    assert evidence.lock_sha256(turned) == evidence.lock_sha256(versions)
    assert evidence.lock_sha256({**versions, "x": "1"}) != evidence.lock_sha256(versions)


# The data.


def labelled() -> Samples:
    values = np.random.default_rng(0).random((6, 3), np.float32)
    return Samples({"x": values}, np.arange(6), np.arange(6) // 2)


def test_samples_in_a_file_have_the_identity_they_have_in_memory(tmp_path: Path) -> None:
    there = labelled()
    values = np.asarray(there.arrays["x"])
    file = keep([values.tobytes()], scratch=tmp_path)
    rows = Rows(file, offset=0, shape=values.shape, dtype=values.dtype)

    assert evidence.data_sha256(replace(there, arrays={"x": rows})) == evidence.data_sha256(there)


def test_any_change_of_the_samples_changes_their_identity() -> None:
    given_ = labelled()
    values = np.asarray(given_.arrays["x"])
    others = [
        replace(given_, arrays={"y": values}),
        replace(given_, arrays={"x": values[::-1]}),
        replace(given_, arrays={"x": values.astype(np.float64)}),
        replace(given_, arrays={"x": values.reshape(6, 3, 1)}),
        replace(given_, labels=None),
        replace(given_, labels=np.arange(6)[::-1]),
        replace(given_, groups=np.arange(6)),
    ]

    assert len({evidence.data_sha256(samples) for samples in [given_, *others]}) == 1 + len(others)


# Statements.


def test_the_provenance_names_all_that_went_in_by_digest() -> None:
    raw = statements.provenance(
        MANIFEST, ARTIFACTS, recipe=Recipe(), shapes={"x": (1, 2)}, data=DATA, lock=LOCK
    )
    statement = json.loads(raw)

    definition = statement["predicate"]["buildDefinition"]
    digests = {
        material["name"]: material["digest"]["sha256"]
        for material in definition["resolvedDependencies"]
        if "name" in material
    }
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {subject["name"] for subject in statement["subject"]} == set(ARTIFACTS)
    assert digests["source"] == MANIFEST.model.source_sha256
    assert digests["data"] == DATA
    assert digests["tool-lock"] == evidence.lock_sha256(LOCK)
    assert {"recipe", "profile"} < digests.keys()
    assert definition["externalParameters"]["inputs"] == {"x": [1, 2]}


def test_another_recipe_is_another_provenance() -> None:
    def digest(recipe: Recipe) -> str:
        raw = statements.provenance(
            MANIFEST, ARTIFACTS, recipe=recipe, shapes={}, data=None, lock=LOCK
        )
        materials = json.loads(raw)["predicate"]["buildDefinition"]["resolvedDependencies"]
        found: str = next(m["digest"]["sha256"] for m in materials if m.get("name") == "recipe")
        return found

    assert digest(Recipe()) == digest(Recipe())
    assert digest(Recipe()) != digest(Recipe(licences=GIVEN))


def test_what_the_gate_found_is_an_in_toto_test_result() -> None:
    raw = statements.test_result(
        MANIFEST,
        ARTIFACTS,
        recipe=Recipe(),
        result="warned",
        tests={"int8: speed": "passed", "int8: agreement": "warned", "int4: agreement": "failed"},
    )

    predicate = json.loads(raw)["predicate"]
    assert json.loads(raw)["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert predicate["result"] == "WARNED"
    assert predicate["passedTests"] == ["int8: speed"]
    assert predicate["warnedTests"] == ["int8: agreement"]
    assert predicate["failedTests"] == ["int4: agreement"]
    assert {material["name"] for material in predicate["configuration"]} == {"profile", "recipe"}


# Built bundles.


def built(folder: Path) -> Path:
    folder.mkdir()
    report = build_for(HERE, write_model(folder), folder, data=write_data(folder))
    assert report.path is not None
    return report.path


@pytest.fixture(scope="module")
def two_builds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("built")
    return built(folder / "one"), built(folder / "two")


def test_two_builds_of_the_same_inputs_have_one_digest(two_builds: tuple[Path, Path]) -> None:
    digests = set()
    for path in two_builds:
        with Bundle.open(path) as opened:
            digests.add(opened.digest)

    assert len(digests) == 1


def test_the_evidence_of_a_bundle_speaks_of_its_artefacts(two_builds: tuple[Path, Path]) -> None:
    with Bundle.open(two_builds[0]) as opened:
        entries = opened.manifest.entries
        materials = json.loads(opened.read(evidence.SBOM))
        provenance = json.loads(opened.read(evidence.PROVENANCE))

    hashes = {
        found["name"]: found["hashes"][0]["content"]
        for found in materials["components"]
        if found["type"] == "file"
    }
    artifacts = {
        name: entry.sha256 for name, entry in entries.items() if name.startswith("artifacts/")
    }
    assert hashes == artifacts
    assert {
        subject["name"]: subject["digest"]["sha256"] for subject in provenance["subject"]
    } == artifacts


def test_what_the_gate_found_lies_in_the_bundle_and_names_its_artefacts(
    two_builds: tuple[Path, Path],
) -> None:
    with Bundle.open(two_builds[0]) as opened:
        entries = opened.manifest.entries
        found = json.loads(opened.read(evidence.TEST_RESULT))
        saved = json.loads(opened.read("reports/report.json"))

    assert found["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert {material["name"]: material["digest"]["sha256"] for material in found["subject"]} == {
        name: entry.sha256 for name, entry in entries.items() if name.startswith("artifacts/")
    }
    assert evidence.TEST_RESULT not in entries
    predicate = found["predicate"]
    assert saved["gate"]["outcome"] == "passed"
    assert predicate["result"] == "PASSED"
    assert predicate["failedTests"] == predicate["warnedTests"] == []
    assert set(predicate["passedTests"]) == {
        "int8: answers are numbers",
        "int8: speed-up",
        "int8: agreement",
        "int8: accuracy drop",
        "float: answers are numbers",
    }


def test_what_too_little_data_cannot_show_is_a_warned_test(tmp_path: Path) -> None:
    pictures, labels = images()
    few = write_data(tmp_path, image=pictures[:48], labels=labels[:48])

    found = build_for(HERE, write_model(tmp_path), tmp_path, data=few)

    assert found.gate.outcome == "not_enough_data"
    assert found.path is not None
    with Bundle.open(found.path) as opened:
        predicate = json.loads(opened.read(evidence.TEST_RESULT))["predicate"]
    assert predicate["result"] == "WARNED"
    assert "int8: agreement" in predicate["warnedTests"]
    assert "int8: speed-up" in predicate["passedTests"]


parts = st.none() | st.floats(0, 1)


@given(
    figures=st.builds(
        Figures,
        size_bytes=st.integers(0, 10**7),
        finite=st.booleans(),
        samples=st.integers(0, 200),
        agreement=parts,
        agreement_low=parts,
        drop=parts,
        drop_high=parts,
        speedup=st.none() | st.floats(0.5, 2),
        latency_ms=st.none() | st.floats(0, 10),
        memory_mb=st.none() | st.floats(0, 10),
    ),
    budget=st.builds(
        Budget,
        max_size_mb=st.none() | st.floats(1, 9),
        max_latency_ms=st.none() | st.floats(1, 9),
        max_memory_mb=st.none() | st.floats(1, 9),
    ),
    is_float=st.booleans(),
)
def test_the_tests_of_an_artefact_say_together_what_the_gate_says(
    figures: Figures, budget: Budget, is_float: bool
) -> None:
    verdict = gate.judge(figures, budget, is_float=is_float)

    results = [result for _, result in judged(figures, budget, is_float=is_float)]

    assert ("failed" in results) is verdict.refused
    if not verdict.refused:
        assert ("warned" in results) is not verdict.proven


def test_inspect_tells_what_the_gate_found(two_builds: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(inspect, [str(two_builds[0])])

    assert done.exit_code == 0, done.output
    lines = [line.split(maxsplit=1) for line in done.output.splitlines()]
    assert ["gate", "passed: 5 passed"] in lines
    assert [text for title, text in lines if title == "evidence"] == [
        evidence.SBOM,
        evidence.PROVENANCE,
        evidence.TEST_RESULT,
    ]

    told = json.loads(CliRunner().invoke(inspect, [str(two_builds[0]), "--json"]).output)
    assert told["gate"]["predicate"]["result"] == "PASSED"


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-signing: `make test` makes it")
def test_openssf_accepts_a_built_bundle(two_builds: tuple[Path, Path], tmp_path: Path) -> None:
    public = tmp_path / "edgekit.pub"
    public.write_bytes(KEY.public.pem)
    with Bundle.open(two_builds[0]) as opened:
        opened.unpack(tmp_path / "unpacked")

    done = verify(tmp_path / "unpacked", public)

    assert done.returncode == 0, done.stderr
