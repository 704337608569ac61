"""Boxes of every family of detectors are found, and come back in pixels of the picture."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import EngineError, RecipeError
from edgekit.manifest import TensorSpec
from edgekit.steps import Boxes, Letterbox, PriorLayer
from edgekit_runtime import pipeline

SQUARE = (pipeline.whole(100, 100),)
CAT, DOG = [10.0, 10.0, 30.0, 50.0], [40.0, 40.0, 80.0, 90.0]


def centred(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def boxes_of(found: dict[str, np.ndarray]) -> list[tuple[int, list[float]]]:
    count = int(found["box_counts"][0])
    pairs = zip(found["box_classes"][0][:count], found["boxes"][0][:count], strict=True)
    return [(int(label), [round(float(x), 3) for x in box]) for label, box in pairs]


CASES = {
    "yolov8": (
        Boxes(family="yolov8"),
        {"y": np.array([[[*centred(CAT), 0.9, 0.1], [*centred(DOG), 0.2, 0.8]]]).swapaxes(1, 2)},
    ),
    "yolov5": (
        Boxes(family="yolov5"),
        {"y": np.array([[[*centred(CAT), 0.9, 0.9, 0.1], [*centred(DOG), 0.8, 0.2, 0.9]]])},
    ),
    "rows": (
        Boxes(family="rows", iou_threshold=None),
        {"y": np.array([[[*CAT, 0.9, 0], [*DOG, 0.8, 1], [0, 0, 0, 0, 0, 0]]])},
    ),
    "decoded with scores by class and a background": (
        Boxes(
            family="decoded", output="b", scores="s", background=0, normalized=True,
            activation="softmax",
        ),
        {
            "b": np.array([[CAT, DOG, DOG]]) / 100,
            "s": np.log([[[0.05, 0.9, 0.05], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]]]),
        },
    ),
    "decoded as TFLite writes it": (
        Boxes(
            family="decoded", output="b", scores="s", classes="c", count="n", corners="yxyx",
            normalized=True, iou_threshold=None,
        ),
        {
            "b": np.array([[CAT, DOG, CAT]])[..., [1, 0, 3, 2]] / 100,
            "s": np.array([[0.9, 0.8, 0.7]]),
            "c": np.array([[0.0, 1.0, 5.0]]),
            "n": np.array([2.0]),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_family_gives_the_same_boxes(name: str) -> None:
    step, outputs = CASES[name]
    step = msgspec.structs.replace(step, labels=("cat", "dog"))

    found = pipeline.finish((step,), outputs, SQUARE)

    assert boxes_of(found) == [(0, CAT), (1, DOG)]
    assert found["box_labels"].tolist() == [[b"cat", b"dog"]]
    assert found["box_counts"].dtype == np.int32
    np.testing.assert_allclose(
        found["box_scores"], [[0.81, 0.72]] if name == "yolov5" else [[0.9, 0.8]], rtol=1e-5
    )


def test_offsets_from_priors_are_boxes() -> None:
    layers = (
        PriorLayer(rows=2, columns=2, sizes=((0.5, 0.5), (0.2, 0.4))),
        PriorLayer(rows=1, columns=1, sizes=((1.0, 1.0),), step=(0.5, 0.5)),
    )
    step = Boxes(
        family="ssd", output="b", scores="s", priors=layers, corners="cycxhw",
        activation="sigmoid", variances=(0.1, 0.2),
    )  # fmt: skip
    # The prior of cell (row 1, column 0) with (.2, .4), moved by half its width and doubled in
    # height; and that of the second layer as it is, whose centre lies at (.25, .25).
    offsets = np.zeros((1, 9, 4), np.float32)
    offsets[0, 5] = [0, 0.5 / 0.1, np.log(2) / 0.2, 0]
    scores = np.full((1, 9, 1), -9, np.float32)
    scores[0, 5], scores[0, 8] = 3, 2

    found = pipeline.finish((step,), {"b": offsets, "s": scores}, SQUARE)

    first, second = (box for _, box in boxes_of(found))
    assert first == pytest.approx([25, 35, 45, 100], abs=1e-3)  # cut off at the edge: 75 + 40
    assert second == pytest.approx([0, 0, 75, 75])


def test_a_model_with_other_anchors_than_priors_is_refused() -> None:
    layers = (PriorLayer(rows=2, columns=2, sizes=((0.5, 0.5),)),)
    step = Boxes(family="ssd", output="b", scores="s", priors=layers)

    with pytest.raises(EngineError, match="9 anchors, boxes has 4 priors"):
        pipeline.finish((step,), {"b": np.zeros((1, 9, 4)), "s": np.zeros((1, 9, 2))}, SQUARE)


def test_of_boxes_that_overlap_in_one_class_the_best_stays() -> None:
    rows = [[*CAT, 0.5, 0], [*CAT, 0.9, 0], [*CAT, 0.7, 1], [*DOG, 0.6, 0], [*DOG, 0.1, 0]]
    outputs = {"y": np.array([rows])}

    found = pipeline.finish((Boxes(family="rows"),), outputs, SQUARE)
    every = pipeline.finish((Boxes(family="rows", iou_threshold=None),), outputs, SQUARE)
    agnostic = pipeline.finish((Boxes(family="rows", class_agnostic=True),), outputs, SQUARE)
    two = pipeline.finish((Boxes(family="rows", max_detections=2),), outputs, SQUARE)

    assert boxes_of(found) == [(0, CAT), (1, CAT), (0, DOG)]
    assert len(boxes_of(every)) == 4
    assert boxes_of(agnostic) == [(0, CAT), (0, DOG)]
    assert boxes_of(two) == [(0, CAT), (1, CAT)]


def test_an_anchor_is_several_boxes_only_where_that_is_asked_for() -> None:
    outputs = {"y": np.array([[*centred(CAT), 0.6, 0.7]])[..., np.newaxis]}

    single = pipeline.finish((Boxes(family="yolov8"),), outputs, SQUARE)
    several = pipeline.finish((Boxes(family="yolov8", multi_label=True),), outputs, SQUARE)

    assert boxes_of(single) == [(1, CAT)]
    assert boxes_of(several) == [(1, CAT), (0, CAT)]


def test_boxes_come_back_in_pixels_of_the_picture_and_batches_are_padded() -> None:
    frames = tuple(
        pipeline.frame_of((Letterbox(width=100, height=100),), *size)
        for size in ((200, 100), (50, 50))
    )
    anchors = [[*centred([0, 20, 50, 80]), 0.9], [*centred([50, 30, 100, 70]), 0.8]]
    one = np.array(anchors).T
    none = np.zeros_like(one)
    none[:, 1] = one[:, 1]

    found = pipeline.finish((Boxes(family="yolov8"),), {"y": np.stack([one, none])}, frames)

    # The wide picture lies between rows 25 and 75, halved; the small one was doubled.
    assert found["boxes"][0].tolist() == [[0, 0, 100, 100], [100, 10, 200, 90]]
    assert found["boxes"][1].tolist() == [[25, 15, 50, 35], [0, 0, 0, 0]]
    assert found["box_counts"].tolist() == [2, 1]
    assert found["box_classes"].tolist() == [[0, 0], [0, -1]]


def test_a_picture_without_boxes_has_none() -> None:
    found = pipeline.finish((Boxes(family="yolov8"),), {"y": np.zeros((2, 6, 50))}, SQUARE * 2)

    assert found["boxes"].shape == (2, 0, 4)
    assert found["box_counts"].tolist() == [0, 0]


@given(
    hnp.arrays(np.float32, (1, 12, 7), elements=st.floats(width=32)),
    st.sampled_from(["none", "sigmoid", "softmax"]),
    st.booleans(),
)
def test_whatever_a_model_writes_boxes_are_numbers_in_the_picture_best_first(
    anchors: np.ndarray, activation: str, multi_label: bool
) -> None:
    step = Boxes(
        family="yolov5",
        activation=activation,  # type: ignore[arg-type]
        multi_label=multi_label,
        max_detections=7,
    )

    found = pipeline.finish((step,), {"y": anchors}, SQUARE)

    scores, boxes = found["box_scores"][0], found["boxes"][0]
    assert len(scores) == found["box_counts"][0] <= 7
    assert (scores >= step.score_threshold).all()
    assert (np.diff(scores) <= 0).all()
    assert ((boxes >= 0) & (boxes <= 100)).all()


boxes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))


@given(st.lists(st.tuples(boxes, st.integers(0, 2), st.floats(0.3, 1)), min_size=1, max_size=30))
def test_suppression_is_that_of_its_definition(
    found: list[tuple[tuple[int, int, int, int], int, float]],
) -> None:
    rows = np.array(
        [[x, y, x + w, y + h, score, label] for (x, y, w, h), label, score in found], np.float32
    )

    kept = pipeline.finish((Boxes(family="rows"),), {"y": rows[np.newaxis]}, SQUARE)

    want: list[np.ndarray] = []
    for row in rows[np.argsort(-rows[:, 4], kind="stable")]:
        rivals = [other for other in want if other[5] == row[5]]
        if all(pipeline.ious(row[None, :4], other[None, :4])[0, 0] <= 0.45 for other in rivals):
            want.append(row)
    np.testing.assert_array_equal(kept["boxes"][0], np.stack(want)[:, :4])


def test_a_hundred_thousand_anchors_that_are_all_sure_take_bounded_work() -> None:
    anchors = np.random.default_rng(0).random((1, 100_000, 6), np.float32)
    anchors[..., 4:] = 0.5 + anchors[..., 4:] / 2

    step = Boxes(family="rows", iou_threshold=1.0, max_detections=1000)

    assert pipeline.finish((step,), {"y": anchors}, SQUARE)["box_counts"].tolist() == [1000]


@pytest.mark.parametrize(
    ("step", "shape", "why"),
    [
        (Boxes(family="yolov8"), (1, 4, 10), r"takes \[n, 4 \+ c, d\]"),
        (Boxes(family="yolov5"), (1, 10, 5), r"takes \[n, d, 5 \+ c\]"),
        (Boxes(family="rows"), (1, 10, 7), r"takes \[n, d, 6\]"),
        (Boxes(family="rows"), (10, 6), r"has shape \[10, 6\]"),
    ],
)
def test_an_output_of_another_family_is_named(
    step: Boxes, shape: tuple[int, ...], why: str
) -> None:
    with pytest.raises(EngineError, match=why):
        pipeline.finish((step,), {"y": np.zeros(shape)}, SQUARE)


def test_scores_that_do_not_belong_to_the_boxes_are_named() -> None:
    step = Boxes(family="decoded", output="b", scores="s")
    outputs = {"b": np.zeros((1, 10, 4)), "s": np.zeros((1, 9, 2))}

    with pytest.raises(EngineError, match=r"'s' has shape \[1, 9, 2\].*should be \[1, 10, c\]"):
        pipeline.finish((step,), outputs, SQUARE)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"op": "boxes", "family": "ssd", "scores": "s"}', "priors"),
        ('{"op": "boxes", "family": "yolov8", "scores": "s"}', "no other"),
        ('{"op": "boxes", "family": "decoded"}', "scores"),
        ('{"op": "boxes", "family": "rows", "classes": "c"}', "decoded alone"),
        ('{"op": "boxes", "family": "rows", "background": 0}', "background"),
        ('{"op": "boxes", "family": "rows", "max_detections": 5000}', "1000"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(text: str, why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why):
        msgspec.json.decode(text, type=Boxes)


def test_a_detector_says_what_it_gives() -> None:
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 6, 2100)),)

    given_ = pipeline.answers((Boxes(family="yolov8", labels=("a", "b"), prefix="my_"),), outputs)

    assert [(spec.name, spec.datatype, spec.shape) for spec in given_] == [
        ("my_boxes", "FP32", (-1, -1, 4)),
        ("my_box_scores", "FP32", (-1, -1)),
        ("my_box_classes", "INT64", (-1, -1)),
        ("my_box_counts", "INT32", (-1,)),
        ("my_box_labels", "BYTES", (-1, -1)),
    ]
    with pytest.raises(RecipeError, match="does not say which output"):
        pipeline.answers((Boxes(family="yolov8"),), (*outputs, *outputs[:0], _other()))


def _other() -> TensorSpec:
    return TensorSpec(name="z", datatype="FP32", shape=(1, 2))
