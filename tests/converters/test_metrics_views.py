"""What a model answers is recognised by its outputs, and where they leave it open, not guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit_converters import metrics
from edgekit_converters.metrics.views import Outputs, View, recognise, view_as

RNG = np.random.default_rng(0)


def noise(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*shape: int, dtype: Any = np.int64) -> NDArray[Any]:
    return RNG.integers(0, 2, shape).astype(dtype)


def chances(*shape: int) -> NDArray[np.float32]:
    powers = np.exp(noise(*shape))
    shares: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def boxes(*, pictures: int = 4, rows: int = 5) -> NDArray[np.float32]:
    low = RNG.random((pictures, rows, 2)) * 50
    size = RNG.random((pictures, rows, 2)) * 20
    score = RNG.random((pictures, rows, 1))
    classes = RNG.integers(0, 3, (pictures, rows, 1))
    return np.concatenate([low, low + size, score, classes], axis=2).astype(np.float32)


RECOGNISED = [
    ({"y": noise(4, 10)}, None, "classes", "top1 without labels is agreement", "agreement"),
    ({"y": noise(4, 10)}, whole(4), "classes", "scores and classes", "top1"),
    ({"y": whole(4, 10, dtype=np.uint8)}, whole(4), "classes", "scores in 8 bits", "top1"),
    ({"label": whole(4), "p": noise(4, 3)}, whole(4), "classes", "scores come second", "top1"),
    ({"label": np.array(["a", "b"] * 2), "p": noise(4, 3)}, None, "classes", "texts", "agreement"),
    ({"label": whole(4)}, None, "index", "an index alone", "agreement"),
    ({"label": whole(4, 1)}, whole(4), "index", "an index in a column", "top1"),
    ({"label": np.array(["a", "b"] * 2)}, whole(4), "index", "texts alone", "agreement"),
    ({"p": noise(4, 1)}, whole(4), "binary", "one score, labels 0 and 1", "top1"),
    ({"p": noise(4, 1)}, None, "values", "one number", "mse"),
    ({"y": noise(4, 3)}, noise(4, 3), "values", "targets", "mse"),
    ({"y": noise(4, 1, 3)}, None, "values", "plain numbers", "cosine"),
    ({"y": noise(4, 6, 32)}, None, "values", "hidden states", "cosine"),
    ({"y": noise(4, 3, 32, 32)}, None, "values", "a picture", "cosine"),
    ({"y": noise(4, 64, 4, 4)}, None, "values", "small features", "cosine"),
    ({"y": noise(4, 5, 32, 32)}, None, "masks", "scores by pixel", "iou"),
    ({"y": noise(4, 9, 7, 3)}, whole(4, 9, 7), "masks", "classes last", "iou"),
    ({"y": noise(4, 1, 9, 7)}, whole(4, 9, 7), "masks", "one probability by pixel", "iou"),
    ({"y": whole(4, 9, 7)}, None, "masks", "masks themselves", "iou"),
    ({"y": whole(4, 1, 9, 7)}, None, "masks", "masks with a channel", "iou"),
    ({"y": chances(4, 12, 9)}, None, "sequences", "chances by step", "edit_distance"),
    ({"y": np.log(chances(4, 12, 9))}, None, "sequences", "their logarithms", "edit_distance"),
    ({"y": noise(4, 12, 9)}, whole(4, 5), "sequences", "labelled steps", "edit_distance"),
    ({"y": whole(4, 12)}, None, "sequences", "tokens", "edit_distance"),
    ({"y": boxes()}, None, "boxes", "rows", "box_agreement"),
    ({"y": boxes()}, boxes()[..., :5], "boxes", "rows and labels", "map50"),
    ({"y": noise(4, 7, 50)}, boxes()[..., :5], "boxes", "anchors last", "map50"),
    ({"y": noise(4, 50, 7)}, boxes()[..., :5], "boxes", "anchors first", "map50"),
]


@pytest.mark.parametrize(
    ("outputs", "labels", "kind", "why", "metric"), RECOGNISED, ids=[row[3] for row in RECOGNISED]
)
def test_an_answer_is_recognised_and_judged_by_a_metric_of_its_kind(
    outputs: Outputs, labels: NDArray[Any] | None, kind: str, why: str, metric: str
) -> None:
    name, _, view = metrics.choose(None, outputs, labels)

    assert (view.kind, name) == (kind, metric)
    assert view == recognise(outputs, labels)


def test_scores_beside_an_index_are_found_by_name() -> None:
    outputs = {"label": whole(4), "probabilities": noise(4, 3)}

    assert recognise(outputs) == View("classes", "probabilities", axis=1)


def test_the_axis_of_classes_is_the_one_that_label_masks_lack() -> None:
    assert recognise({"y": noise(4, 5, 9, 7)}, whole(4, 9, 7)).axis == 1
    assert recognise({"y": noise(4, 9, 7, 5)}, whole(4, 9, 7)).axis == 3


def test_boxes_in_outputs_of_their_own_are_found_whatever_their_order() -> None:
    table = boxes()
    outputs: Outputs = {
        "labels": table[..., 5].astype(np.int64),
        "boxes": table[..., :4],
        "scores": table[..., 4],
    }

    view = recognise(outputs)

    assert view == View("boxes", "boxes", layout="separate", others=("scores", "labels"))


def test_an_embedding_is_one_because_the_recipe_says_so() -> None:
    outputs = {"y": noise(4, 32)}

    assert metrics.choose("cosine", outputs, None)[2].kind == "values"
    assert metrics.choose("retrieval", outputs, whole(4))[2].kind == "values"


@pytest.mark.parametrize(
    ("metric", "outputs", "needs"),
    [
        ("agreement", {"y": noise(4, 3, 3)}, "class scores"),
        ("top5", {"y": whole(4)}, "class scores"),
        ("iou", {"y": noise(4, 10)}, "masks"),
        ("edit_distance", {"y": noise(4, 10)}, "tokens"),
        ("map50", {"y": noise(4, 10)}, "boxes"),
    ],
)
def test_a_metric_that_the_outputs_do_not_fit_is_refused_with_their_shapes(
    metric: str, outputs: Outputs, needs: str
) -> None:
    with pytest.raises(RecipeError, match=f"metric {metric} needs {needs}.*'y' ") as refusal:
        metrics.choose(metric, outputs, None)

    assert refusal.value.hint


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="no metric called 'f1'") as refusal:
        metrics.find("f1")

    assert "top1" in (refusal.value.hint or "")


@pytest.mark.parametrize("name", metrics.METRICS.names())
def test_every_metric_can_be_loaded_and_says_what_it_judges(name: str) -> None:
    assert metrics.find(name).kinds


def test_what_is_asked_for_is_read_where_a_shape_allows_it() -> None:
    logits = {"y": noise(4, 12, 9)}

    assert view_as("sequences", logits, None, asked=False) is None
    assert view_as("sequences", logits, None, asked=True) == View("sequences", "y", axis=2)
