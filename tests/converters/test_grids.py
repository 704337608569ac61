"""Scales of an earlier bundle are kept where they cost next to nothing, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekit.bundle import Bundle
from edgekit.errors import BuildError
from edgekit_converters import grids
from edgekit_converters.calibrate import Calibration
from edgekit_converters.grids import Grids
from edgekit_converters.normalise import spec_of
from edgekit_converters.passes import PASSES
from tests import bundles
from tests.converters.passes_models import error, graph_of, noise, run

PASS = PASSES.get("static-int8")


def net(*, moved: float = 0.0, grown: float = 1.0) -> onnx.ModelProto:
    """Convolution, clip at 6, pool and Gemm, with weights that moved by a share of their size, and
    one channel of the first kernel that grew."""
    nodes = [
        helper.make_node("Conv", ["x", "first", "b1"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "zero", "six"], ["b"], "relu6"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flatten"),
        helper.make_node("Gemm", ["d", "head", "b2"], ["y"], "gemm", transB=1),
    ]
    first = noise(1, 16, 4, 3, 3) + np.float32(moved) * noise(11, 16, 4, 3, 3)
    first[3] *= np.float32(grown)
    constants = {
        "first": first,
        "b1": noise(2, 16),
        "head": noise(5, 10, 16) + np.float32(moved) * noise(15, 10, 16),
        "b2": noise(6, 10),
        "zero": np.asarray(np.float32(0)),
        "six": np.asarray(np.float32(6)),
    }
    return graph_of(
        nodes,
        inputs={"x": ["N", 4, 12, 12]},
        outputs={"y": ["N", 10]},
        constants=constants,
    )


def quantised(
    model: onnx.ModelProto, scratch: Path, *, kept: Grids | None = None, activations: str = "u8"
) -> onnx.ModelProto:
    specs = tuple(spec_of(value) for value in model.graph.input)
    calibration = Calibration(
        inputs=specs, arrays={"x": noise(9, 24, 4, 12, 12)}, scratch=scratch, grids=kept
    )
    step = PASS.step({"activations": activations})
    return PASS.apply(model, step, calibration=calibration)


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def grids_of(model: onnx.ModelProto) -> Grids:
    found = grids.grids_of(model, digest=f"sha256:{'0' * 64}")
    assert found is not None
    return found


@pytest.mark.parametrize("activations", ["u8", "s8", "u16"])
def test_the_same_model_on_its_own_grids_is_the_same_file(tmp_path: Path, activations: str) -> None:
    first = quantised(net(), tmp_path, activations=activations)

    again = quantised(net(), tmp_path, kept=grids_of(first), activations=activations)

    assert again.SerializeToString() == first.SerializeToString()


def test_after_a_fine_tune_scales_stay_and_few_weights_change(tmp_path: Path) -> None:
    first = constants(made := quantised(net(), tmp_path))
    tuned = net(moved=0.002)

    kept = constants(artefact := quantised(tuned, tmp_path, kept=grids_of(made)))
    fresh = constants(quantised(tuned, tmp_path))

    for activation in ("x_scale", "b_scale", "c_scale"):
        assert np.array_equal(kept[activation], first[activation])
    assert not np.array_equal(fresh["c_scale"], first["c_scale"])
    for weight in ("first", "head"):
        stayed = kept[f"{weight}_scale"] == first[f"{weight}_scale"]
        assert stayed.mean() > 0.75
        assert not np.array_equal(fresh[f"{weight}_scale"], first[f"{weight}_scale"])
        changed = kept[f"{weight}_quantized"] != first[f"{weight}_quantized"]
        assert changed.mean() < 0.2
    x = noise(20, 4, 4, 12, 12)
    assert error(run(artefact, x=x)[0], run(tuned, x=x)[0]) < 0.05


def test_a_channel_that_grew_beyond_its_scale_gets_a_new_one(tmp_path: Path) -> None:
    made = quantised(net(), tmp_path)

    kept = constants(quantised(net(grown=1.2), tmp_path, kept=grids_of(made)))

    moved = kept["first_scale"] != constants(made)["first_scale"]
    assert np.flatnonzero(moved).tolist() == [3]


def test_grids_of_other_activations_leave_those_alone(tmp_path: Path) -> None:
    signed = quantised(net(), tmp_path, activations="s8")

    kept = constants(quantised(net(), tmp_path, kept=grids_of(signed)))

    fresh = constants(quantised(net(), tmp_path))
    assert kept["b_zero_point"].dtype == np.uint8
    assert all(np.array_equal(kept[f"{name}_scale"], fresh[f"{name}_scale"]) for name in "xbc")


@given(
    scale=st.floats(2**-20, 1024, width=32),
    zero=st.integers(0, 255),
    kind=st.sampled_from(["u8", "u16"]),
)
def test_a_grid_as_a_range_comes_back_from_the_quantizer(
    scale: float, zero: int, kind: grids.Activations
) -> None:
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    zero, last = (zero, 255) if kind == "u8" else (zero * 257, 65535)
    low, high = (np.float32(end) for end in grids.range_of(scale, zero, kind))

    found_zero, found_scale = compute_scale_zp(low, high, np.array(0), np.array(last))

    assert int(found_zero) == zero
    np.testing.assert_array_max_ulp(np.float32(found_scale), np.float32(scale), 1)


@pytest.mark.parametrize(
    ("grid", "seen", "expected"),
    [
        ((0.0, 6.0), (0.0, 6.0), True),
        ((0.0, 6.0), (0.0, 6.2), True),
        ((0.0, 6.0), (0.0, 7.0), False),
        ((0.0, 6.0), (-1.0, 5.0), False),
        ((0.0, 6.0), (0.0, 4.0), False),
        ((-3.0, 3.0), (-2.9, 2.8), True),
        ((0.0, 0.0), (0.0, 0.0), True),
    ],
)
def test_a_grid_fits_where_little_is_clipped_and_little_wasted(
    grid: tuple[float, float], seen: tuple[float, float], expected: bool
) -> None:
    assert grids.fits(grid, seen) is expected


def test_a_bundle_without_quantised_variants_has_no_scales_to_keep(tmp_path: Path) -> None:
    path = bundles.write(tmp_path)

    with pytest.raises(BuildError, match="no scales to keep"):
        grids.read(path, scratch=tmp_path)


def test_a_bundle_and_its_slot_give_the_same_grids(tmp_path: Path) -> None:
    model = quantised(net(), tmp_path).SerializeToString()
    with Bundle.open(bundles.write(tmp_path)) as bundle:
        variant = structs.replace(
            bundle.manifest.variants[0],
            name="int8",
            artifact="artifacts/int8.onnx",
            precision="int8-qdq-u8s8",
        )
    path = bundles.write(
        tmp_path / "shipped", variants=[variant], extra={"artifacts/int8.onnx": model}
    )
    with Bundle.open(path) as bundle:
        slot = bundle.unpack(tmp_path / "a")

    found = grids.read(path, scratch=tmp_path)

    again = grids.read(slot, scratch=tmp_path)
    of_file = grids_of(onnx.load_from_string(model))
    assert found.activations == again.activations == of_file.activations
    assert found.weights.keys() == again.weights.keys() == {"first", "head"}
    assert found.digest == again.digest == bundle.digest
