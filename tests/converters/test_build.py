"""A build ends in a bundle that says what was measured, or in one clear refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit import bundle, tensors, training
from edgekit.bundle import Bundle
from edgekit.errors import BuildError, DataError, ModelError
from edgekit.manifest import Manifest
from edgekit.recipe import Budget, PassSpec, Recipe, Split, Training
from edgekit_converters.demo.digits import write_digits
from edgekit_converters.report import BundleReport
from edgekit_converters.targets.tensorrt import graph_lint
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import run_all
from tests.converters.building import (
    HERE,
    Stopwatch,
    build_for,
    convnet,
    images,
    write_data,
    write_model,
)
from tests.converters.chains import needs
from tests.converters.tflite_models import write_dense


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def manifest_of(found: BundleReport) -> Manifest:
    assert found.path is not None
    with Bundle.open(found.path) as opened:
        return opened.manifest


def unpacked(found: BundleReport, folder: Path) -> Path:
    assert found.path is not None
    with Bundle.open(found.path) as opened:
        return opened.unpack(folder)


def test_int8_comes_first_and_float_stays_beside_it(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = build_for(HERE, model, tmp_path, data=data)

    assert [variant.name for variant in found.variants] == ["int8", "float"]
    assert found.gate.outcome == "passed"
    assert found.variants[0].precision == "int8-qdq-u8s8"
    assert found.variants[0].agreement is not None
    assert found.variants[0].agreement >= 0.95
    assert found.variants[0].speedup == pytest.approx(2.0)


def test_every_variant_reproduces_its_golden_outputs_in_its_engine(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = build_for(HERE, model, tmp_path, data=data)
    folder = unpacked(found, tmp_path / "unpacked")

    with Bundle.open(folder) as opened:
        inputs = opened.tensors(bundle.GOLDEN_INPUTS)
        reference = opened.tensors(bundle.GOLDEN_REFERENCE)
        for variant in opened.manifest.variants:
            session = ENGINES.get(variant.engine).open(
                opened.artifact(variant), options=variant.options
            )
            answers = run_all(session, inputs)["scores"]
            session.close()
            golden = variant.golden
            assert golden.outputs is not None
            assert golden.atol is not None
            assert golden.rtol is not None
            own = opened.tensors(golden.outputs)["scores"]
            np.testing.assert_allclose(answers, own, atol=golden.atol, rtol=golden.rtol)
            far = np.abs(answers - reference["scores"]).max()
            assert far <= golden.reference_atol


def test_the_same_inputs_give_the_same_digest(model: Path, data: Path, tmp_path: Path) -> None:
    first = build_for(HERE, model, tmp_path, data=data)
    (tmp_path / "again").mkdir()
    second = build_for(HERE, model, tmp_path / "again", data=data)

    assert first.digest == second.digest


def test_other_weights_give_another_source_digest(model: Path, data: Path, tmp_path: Path) -> None:
    head = np.zeros((1024, 10), np.float32)
    weights = tmp_path / "round.safetensors"
    weights.write_bytes(tensors.encode({"head": head}))

    before = build_for(HERE, model, tmp_path)
    after = build_for(HERE, model, tmp_path, weights=weights)

    assert before.digest != after.digest
    with Bundle.open(unpacked(after, tmp_path / "unpacked")) as opened:
        float_ = opened.artifact(opened.manifest.variant("float"))
        kept = {t.name: t for t in onnx.load(float_).graph.initializer}
    assert not np.any(onnx.numpy_helper.to_array(kept["head"]))


def test_int8_that_is_slower_than_float_does_not_ship(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = build_for(HERE, model, tmp_path, data=data, measurer=Stopwatch(speedup=0.41))

    assert [variant.name for variant in found.variants] == ["float"]
    assert found.gate.outcome == "passed"
    assert {rejected.reason for rejected in found.rejected} == {"slower than float: 0.41x"}


def test_int8_over_the_accuracy_budget_does_not_ship(
    model: Path, data: Path, tmp_path: Path
) -> None:
    recipe = Recipe(
        budget=Budget(min_agreement=1.0, accuracy_drop=0.0),
        metric="cosine",
        passes=(PassSpec(name="static-int8"),),
    )

    found = build_for(HERE, model, tmp_path, data=data, recipe=recipe)

    assert [variant.name for variant in found.variants] == ["float"]
    assert found.rejected
    assert any("accuracy drop" in rejected.reason for rejected in found.rejected)


def test_a_size_that_nothing_keeps_is_refused_and_nothing_is_written(
    model: Path, data: Path, tmp_path: Path
) -> None:
    recipe = Recipe(budget=Budget(max_size_mb=0.001))

    found = build_for(HERE, model, tmp_path, data=data, recipe=recipe)

    assert found.gate.outcome == "refused"
    assert found.path is None
    assert list((tmp_path / "out").iterdir()) == []


def test_without_data_no_static_int8_is_made(model: Path, tmp_path: Path) -> None:
    found = build_for(HERE, model, tmp_path)

    assert [variant.name for variant in found.variants] == ["float"]
    assert found.gate.outcome == "not_enough_data"
    assert found.data.origin == "synthetic"
    assert "--data" in found.rejected[0].reason
    assert any("synthetic" in note for note in found.notes)


def test_with_few_samples_float_is_the_default_and_int8_unproven(
    model: Path, tmp_path: Path
) -> None:
    pictures, labels = images()
    few = write_data(tmp_path, image=pictures[:20], labels=labels[:20])

    found = build_for(HERE, model, tmp_path, data=few)

    assert found.gate.outcome == "not_enough_data"
    assert found.variants[0].name == "float"
    assert [variant.proven for variant in found.variants] == [True, False]
    assert "evaluation samples" in found.gate.reasons[0]


def test_jetson_gets_symmetric_int8_that_is_linted_and_not_executed(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = build_for("jetson", model, tmp_path, data=data)

    best = found.variants[0]
    assert (best.name, best.accelerator, best.evidence) == ("int8", "gpu", "linted")
    assert best.latency_ms is None
    assert best.speedup is None
    assert best.placement.accelerator_macs == 1.0
    assert best.figure_evidence.placement == "linted"
    assert best.figure_evidence.agreement == "simulated"
    variant = manifest_of(found).variants[0]
    assert variant.golden.outputs is None
    names = [provider["name"] for provider in variant.options["providers"]]
    assert names[0] == "TensorrtExecutionProvider"
    assert names[-1] == "CPUExecutionProvider"
    folder = unpacked(found, tmp_path / "unpacked")
    assert graph_lint(onnx.load(folder / variant.artifact)) == ()


def test_another_instruction_set_is_simulated_and_has_no_latency(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = build_for("raspberry-pi-5", model, tmp_path, data=data)

    assert {variant.evidence for variant in found.variants} == {"simulated"}
    assert {variant.latency_ms for variant in found.variants} == {None}
    assert all(variant.agreement is not None for variant in found.variants)
    assert all(variant.golden.outputs is None for variant in manifest_of(found).variants)


def test_a_source_that_is_quantised_already_is_called_int8(model: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    first = build_for(HERE, model, tmp_path, data=data)
    assert first.path is not None
    with Bundle.open(first.path) as opened:
        quantised = opened.unpack(tmp_path / "unpacked") / "artifacts" / "int8.onnx"

    (tmp_path / "again").mkdir()
    again = build_for(HERE, quantised, tmp_path / "again", data=data)

    assert {variant.precision for variant in again.variants} == {"int8"}


@pytest.mark.parametrize("name", [HERE, "jetson", "raspberry-pi-5"])
def test_artefacts_keep_the_caps_of_their_engine(name: str, data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path, convnet(opset=12, ir=13))

    found = build_for(name, model, tmp_path, data=data)

    content = manifest_of(found)
    for variant in content.variants:
        engine = next(e for e in content.profile.engines if e.name == variant.engine)
        assert variant.needs.onnx_ir is not None
        assert variant.needs.opset is not None
        assert variant.needs.onnx_ir <= engine.max_onnx_ir
        assert 17 <= variant.needs.opset <= engine.max_opset


def test_a_trainable_model_carries_its_weights_under_their_own_names(tmp_path: Path) -> None:
    write_digits(tmp_path, devices=2, seed=0)
    recipe = Recipe(training=Training(), passes=(), split=Split(golden=2))

    found = build_for(
        HERE,
        tmp_path / "digits.onnx",
        tmp_path,
        data=tmp_path / "heldout.npz",
        recipe=recipe,
    )

    assert found.path is not None
    with Bundle.open(found.path) as opened:
        parameters = opened.tensors(training.PARAMETERS)
        assert {training.TRAIN, training.EVALUATE, training.SPEC} <= set(opened.names())
    names = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    assert set(parameters) == names
    folder = unpacked(found, tmp_path / "unpacked")
    float_ = onnx.load(folder / "artifacts/float.onnx")
    assert {tensor.name for tensor in float_.graph.initializer} == names


def test_a_tflite_source_is_packaged_as_it_is(tmp_path: Path) -> None:
    model = tmp_path / "dense.tflite"
    write_dense(model)
    pictures, labels = images()
    data = write_data(tmp_path, image=pictures.reshape(-1, 64), labels=labels)

    found = build_for(HERE, model, tmp_path, data=data)

    assert [v.engine for v in found.variants] == ["litert"]
    assert found.variants[0].agreement == 1.0
    folder = unpacked(found, tmp_path / "unpacked")
    assert (folder / "artifacts/float.tflite").read_bytes() == model.read_bytes()


def test_coral_says_why_the_edge_tpu_is_left_out(tmp_path: Path) -> None:
    model = tmp_path / "dense.tflite"
    write_dense(model)

    found = build_for("coral-usb", model, tmp_path)

    assert [(v.engine, v.accelerator) for v in found.variants] == [("litert", "cpu")]
    assert "the compiler takes integer models" in found.rejected[0].reason


@needs("onnx2tf", "litert-quantizer", "vela")
def test_an_engine_that_cannot_be_built_for_leaves_the_others(
    model: Path, data: Path, tmp_path: Path
) -> None:
    board = tmp_path / "board.yaml"
    board.write_text(
        "name: board\nextends: generic-x86_64\nengines:\n"
        "  - {name: onnxruntime, version: '1.31'}\n"
        "  - {name: litert, version: '2.3', accelerator: npu, precisions: [int8],"
        " providers: [{name: x, options: {accelerator_config: ethos-u99}}]}\n"
        "quality: {evidence: linted, checked: '2026-11-22', sources: ['https://example.com']}\n"
    )

    found = build_for(str(board), model, tmp_path, data=data)

    assert {variant.engine for variant in found.variants} == {"onnxruntime"}
    reasons = [entry.reason for entry in found.rejected if entry.engine == "litert"]
    assert any("do not name an Ethos-U" in reason for reason in reasons)


def test_a_profile_without_an_engine_for_the_format_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "dense.tflite"
    write_dense(model)

    with pytest.raises(BuildError, match=r"nothing can be made for that of a \.tflite"):
        build_for("jetson", model, tmp_path)


def test_a_wrong_static_shape_is_fixed_by_the_caller(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path, convnet(batch=4))

    found = build_for(HERE, model, tmp_path, data=data, shapes={"image": (1, 1, 8, 8)})

    assert manifest_of(found).model.inputs[0].shape == (1, 1, 8, 8)


def test_labels_that_the_model_has_no_class_for_are_refused(model: Path, tmp_path: Path) -> None:
    _, labels = images()
    data = write_data(tmp_path, labels=labels + 5)

    with pytest.raises(DataError, match="labels hold 14, the model has classes 0 to 9"):
        build_for(HERE, model, tmp_path, data=data)


def test_a_recipe_may_pin_a_scheme(model: Path, data: Path, tmp_path: Path) -> None:
    recipe = Recipe(passes=(PassSpec(name="static-int8", options={"calibrator": "percentile"}),))

    found = build_for(HERE, model, tmp_path, data=data, recipe=recipe)

    assert found.variants[0].scheme.startswith("static-int8/u8s8/percentile")


def test_a_model_that_no_engine_runs_is_refused(tmp_path: Path) -> None:
    broken = convnet()
    broken.graph.node[0].attribute[0].ints[:] = [0, 0, 0, 0]
    model = write_model(tmp_path, broken)

    with pytest.raises(ModelError, match="cannot be run"):
        build_for(HERE, model, tmp_path)


def test_evidence_names_source_tools_and_artefacts(model: Path, data: Path, tmp_path: Path) -> None:
    found = build_for(HERE, model, tmp_path, data=data)

    assert found.path is not None
    with Bundle.open(found.path) as opened:
        sbom = opened.read("sbom.cdx.json").decode()
        provenance = opened.read("provenance.json").decode()
        source = opened.manifest.model.source_sha256
    assert '"specVersion":"1.6"' in sbom
    assert "slsa.dev/provenance/v1" in provenance
    assert source in sbom
    assert source in provenance
    assert "artifacts/int8.onnx" in provenance
    assert str(tmp_path) not in sbom + provenance


def test_the_report_is_one_page_that_needs_nothing_else(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = build_for(HERE, model, tmp_path, data=data)

    assert found.report is not None
    page = found.report.read_text()
    assert "<script" not in page
    assert "http://" not in page
    assert 'src="http' not in page
    assert "Accuracy against latency" in page
    assert "<svg" in page
    assert "data:image/jpeg" in page
