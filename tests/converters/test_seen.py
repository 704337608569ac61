"""What two models see on a picture is told as they are compared, and drawn where it is."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.recipe import Budget, PassSpec, Recipe
from edgekit_converters.metrics.boxes import Boxes
from edgekit_converters.metrics.detection import SURE, agreement
from edgekit_converters.metrics.seen import MOST_BOXES, MOST_CELLS, Cell, boxes_of, mask_of
from edgekit_converters.overlays import over
from tests.converters.building import HERE, build_for, write_model

SIDE, CELLS = 32, 8
# Whatever the artefact loses, the page has to show it.
GENEROUS = Budget(accuracy_drop=1, min_agreement=0)

CORNERS = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
FOUND = st.lists(st.tuples(CORNERS, st.floats(0.01, 1), st.integers(0, 1)), max_size=8)


def as_boxes(found: list[tuple[tuple[int, int, int, int], float, int]]) -> Boxes:
    best = sorted(found, key=lambda box: -box[1])
    return Boxes(
        np.array([box[0] for box in best], np.float64).reshape(-1, 4),
        np.array([box[1] for box in best], np.float64),
        np.array([box[2] for box in best], np.int64),
    )


@given(FOUND, FOUND)
def test_boxes_that_are_shown_alone_are_those_that_the_metric_counts_as_lost(
    one: list[tuple[tuple[int, int, int, int], float, int]],
    other: list[tuple[tuple[int, int, int, int], float, int]],
) -> None:
    before, after = as_boxes(one), as_boxes(other)

    shown = boxes_of(before, after)

    both = (*shown.source, *shown.artefact)
    sure = [box for box in both if box.score >= SURE]
    alone = [box for box in both if box.alone]
    assert all(box.score >= SURE for box in alone)
    expected = 1 - len(alone) / len(sure) if sure else 1.0
    assert agreement(before, after) == pytest.approx(expected)
    assert len(sure) == int((before.scores >= SURE).sum() + (after.scores >= SURE).sum())


def test_a_crowd_of_boxes_is_cut_to_the_best() -> None:
    crowd = as_boxes([((i, 0, i + 1, 1), 0.9 - i / 1000, 0) for i in range(60)])

    assert len(boxes_of(crowd, crowd).source) == MOST_BOXES


masks = hnp.arrays(np.int64, (7, 9), elements=st.integers(0, 3))


@given(masks, masks)
def test_each_cell_says_how_two_masks_differ(
    one: NDArray[np.int64], other: NDArray[np.int64]
) -> None:
    found = mask_of(one, other)

    cells = found.map()
    assert found.changed == pytest.approx((one != other).mean())
    np.testing.assert_array_equal(cells == Cell.SAME, one == other)
    np.testing.assert_array_equal(cells == Cell.ONLY_SOURCE, (one > 0) & (other == 0))
    np.testing.assert_array_equal(cells == Cell.ONLY_ARTEFACT, (one == 0) & (other > 0))


def test_a_large_mask_is_thinned_and_its_share_is_not() -> None:
    one = np.zeros((900, 1200), np.int64)
    other = one.copy()
    other[0, 0] = 1

    found = mask_of(one, other)

    assert max(found.height, found.width) <= MOST_CELLS
    assert found.changed == 1 / one.size


def test_corners_as_shares_are_drawn_in_the_pixels_of_the_picture() -> None:
    half = Boxes(np.array([[0.5, 0.25, 1.0, 0.75]]), np.array([0.9]), np.array([3]))

    drawing = over(boxes_of(half, half), 40, 80, name=lambda label: f"<{label}>")

    rects = [rect for rect in ET.fromstring(drawing) if rect.get("class") == "float-box"]
    assert [(r.get("x"), r.get("y"), r.get("width"), r.get("height")) for r in rects] == [
        ("40.0", "10.0", "40.0", "20.0")
    ]
    assert "&lt;3&gt;" in drawing


def detector() -> onnx.ModelProto:
    """One convolution that gives each of 8 x 8 cells a box around it and two class scores, in the
    layout of YOLOv8: `found` [N, 6, 64]."""
    rng = np.random.default_rng(5)
    step = SIDE // CELLS
    y, x = np.divmod(np.arange(CELLS * CELLS), CELLS)
    grid = np.stack([x * step + 2, y * step + 2, np.full(64, 7), np.full(64, 7)])
    weights: dict[str, NDArray[Any]] = {
        "w": (rng.standard_normal((6, 3, step, step)) * 0.4).astype(np.float32),
        "grid": grid[np.newaxis].astype(np.float32),
        "shape": np.array([0, 6, CELLS * CELLS], np.int64),
        "parts": np.array([4, 2], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "head", strides=[step, step]),
        helper.make_node("Reshape", ["c", "shape"], ["cells"], "cells"),
        helper.make_node("Split", ["cells", "parts"], ["moves", "logits"], "split", axis=1),
        helper.make_node("Add", ["moves", "grid"], ["corners"], "place"),
        helper.make_node("Sigmoid", ["logits"], ["scores"], "scores"),
        helper.make_node("Concat", ["corners", "scores"], ["found"], "join", axis=1),
    ]
    return _model(nodes, ["N", 6, CELLS * CELLS], "found", weights)


def segmenter() -> onnx.ModelProto:
    """Two convolutions to the scores of four classes, `scores` [N, 4, 32, 32]."""
    rng = np.random.default_rng(6)
    weights = {
        "v": (rng.standard_normal((8, 3, 3, 3)) * 0.4).astype(np.float32),
        "w": (rng.standard_normal((4, 8, 3, 3)) * 0.4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "v"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w"], ["scores"], "second", pads=[1, 1, 1, 1]),
    ]
    return _model(nodes, ["N", 4, SIDE, SIDE], "scores", weights)


def _model(
    nodes: list[onnx.NodeProto],
    shape: list[str | int],
    output: str,
    weights: Mapping[str, NDArray[Any]],
) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    found = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    initialisers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "sees", [image], [found], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("model", "metric", "said"),
    [
        (detector, "box_agreement", "thick: the other has no such box"),
        (segmenter, "iou", "the artefact&#x27;s mask alone"),
    ],
)
def test_worst_samples_of_a_page_show_what_both_models_see(
    model: Callable[[], onnx.ModelProto], metric: str, said: str, tmp_path: Path
) -> None:
    pictures = np.random.default_rng(0).random((80, 3, SIDE, SIDE), np.float32)
    data = tmp_path / "pictures.npz"
    np.savez(data, image=pictures)
    recipe = Recipe(metric=metric, passes=(PassSpec(name="static-int8"),), budget=GENEROUS)

    found = build_for(HERE, write_model(tmp_path, model()), tmp_path, data=data, recipe=recipe)

    assert found.report is not None
    page = found.report.read_text()
    drawings = re.findall(r'<svg class="sight".*?</svg>', page, flags=re.DOTALL)
    assert len(drawings) == 8
    assert all(len(ET.fromstring(drawing)) > 0 for drawing in drawings)
    assert said in page
