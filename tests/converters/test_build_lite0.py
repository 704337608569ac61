"""The main job on a real model: EfficientNet-Lite0 and real photographs, for two boards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos
from edgekit_converters.targets.tensorrt import graph_lint
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import run_all
from tests.converters.building import HERE, build_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lite0")
    write_lite0(folder / "lite0.onnx")
    return folder / "lite0.onnx", write_photos(folder, crops=6)


def test_int8_keeps_the_answers_of_a_real_classifier(
    assets: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = assets

    found = build_for(HERE, model, tmp_path, data=data)

    best, parent = found.variants
    assert (best.name, parent.name) == ("int8", "float")
    assert best.agreement is not None
    assert best.agreement >= 0.85
    assert best.size_bytes < 0.3 * parent.size_bytes
    assert best.metric is not None
    assert best.metric.name == "top1"
    assert best.metric.float_value > 0.85
    assert found.path is not None
    with Bundle.open(found.path) as packed:
        folder = packed.unpack(tmp_path / "unpacked")
    with Bundle.open(folder) as opened:
        variant = opened.manifest.variant("int8")
        session = ENGINES.get("onnxruntime").open(opened.artifact(variant), options=variant.options)
        answers = run_all(session, opened.tensors(GOLDEN_INPUTS))
        assert variant.golden.outputs is not None
        own = opened.tensors(variant.golden.outputs)
    np.testing.assert_array_equal(answers["logits"], own["logits"])


def test_a_jetson_bundle_of_a_real_classifier_passes_the_rules_of_tensorrt(
    assets: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = assets

    found = build_for("jetson", model, tmp_path, data=data)

    best = found.variants[0]
    assert (best.evidence, best.precision) == ("linted", "int8-qdq-s8s8")
    assert best.agreement is not None
    assert best.agreement >= 0.85
    assert found.path is not None
    with Bundle.open(found.path) as packed:
        folder = packed.unpack(tmp_path / "unpacked")
    assert graph_lint(onnx.load(folder / "artifacts/int8.onnx")) == ()
