"""The steps of a recipe give the same arrays and answers on a workstation and on a board."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from edgekit.errors import DataError, EngineError, RecipeError
from edgekit.manifest import TensorSpec
from edgekit.steps import (
    Boxes,
    CenterCrop,
    Channels,
    Crop,
    Dtype,
    Layout,
    Letterbox,
    Normalise,
    PreStep,
    Resize,
    Sigmoid,
    Softmax,
    TopK,
)
from edgekit_runtime import pipeline

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
ONE = (pipeline.whole(60, 40),)

sides = st.integers(1, 90)
geometric = st.one_of(
    st.builds(Resize, width=sides, height=sides),
    st.builds(Resize, shorter=sides),
    st.builds(Letterbox, width=sides, height=sides, center=st.booleans(), scaleup=st.booleans()),
    st.builds(CenterCrop, width=st.integers(1, 8), height=st.integers(1, 8)),
)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_a_file_and_its_pixels_give_the_same_input() -> None:
    steps = (Resize(shorter=32), CenterCrop(width=24, height=24), Normalise(), Layout(to="NCHW"))

    from_file = pipeline.preprocess(steps, encoded(PICTURE))

    assert from_file.shape == (3, 24, 24)
    assert from_file.dtype == np.float32
    assert from_file.flags.c_contiguous
    np.testing.assert_array_equal(from_file, pipeline.preprocess(steps, PICTURE))


def test_resizing_is_pillows() -> None:
    got = pipeline.preprocess((Resize(width=20, height=30, resample="bilinear"),), PICTURE)

    want = Image.fromarray(PICTURE).resize((20, 30), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got, np.asarray(want, dtype=np.float32))


def test_without_antialias_a_pixel_is_interpolated_from_the_four_around_its_centre() -> None:
    step = Resize(width=20, height=10, resample="bilinear", antialias=False)

    got = pipeline.preprocess((step,), PICTURE)

    # Centres fall at x = 3 i + 1 and between rows 4 i + 1 and 4 i + 2.
    rows = PICTURE.astype(np.float32)
    want = (rows[1::4, 1::3] + rows[2::4, 1::3]) / 2
    np.testing.assert_allclose(got, want, atol=1)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_normalising_before_or_after_layout_is_the_same(pixels: np.ndarray) -> None:
    normalise = Normalise(mean=(127.0, 100.0, 1.0), std=(128.0, 2.0, 3.0))

    first = pipeline.preprocess((normalise, Layout(to="NCHW")), pixels)

    np.testing.assert_array_equal(
        first, pipeline.preprocess((Layout(to="NCHW"), normalise), pixels)
    )
    np.testing.assert_allclose(first[0], (pixels[..., 0].astype(np.float32) - 127) / 128)


def test_a_letterbox_keeps_the_aspect_and_pads_with_its_colour() -> None:
    step = Letterbox(width=30, height=30, fill=(1, 2, 3), resample="nearest")

    boxed = pipeline.preprocess((step, Dtype(to="UINT8")), PICTURE)

    inside = Image.fromarray(PICTURE).resize((30, 20), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(boxed[5:25], np.asarray(inside))
    assert (boxed[:5] == (1, 2, 3)).all()
    assert (boxed[25:] == (1, 2, 3)).all()


def test_a_letterbox_may_pad_below_alone_and_leave_small_pictures_as_they_are() -> None:
    step = Letterbox(width=64, height=64, fill=(0, 0, 0), center=False, scaleup=False)

    boxed = pipeline.preprocess((step, Dtype(to="UINT8")), PICTURE)

    np.testing.assert_array_equal(boxed[:40, :60], PICTURE)
    assert not boxed[40:].any()
    assert not boxed[:, 60:].any()


def test_channels_come_as_the_model_takes_them() -> None:
    gray = Image.fromarray(PICTURE).convert("L")

    np.testing.assert_array_equal(
        pipeline.preprocess((Channels(order="bgr"),), PICTURE), PICTURE[..., ::-1]
    )
    np.testing.assert_array_equal(
        pipeline.preprocess((Channels(order="gray"), Layout(to="NCHW")), PICTURE)[0],
        np.asarray(gray),
    )


def test_a_model_of_uint8_takes_pixels_as_they_are() -> None:
    got = pipeline.preprocess((Dtype(to="UINT8"),), encoded(PICTURE))

    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, PICTURE)
    assert pipeline.preprocess((Normalise(), Dtype(to="FP16")), PICTURE).dtype == np.float16


def test_a_picture_stands_upright_by_its_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pipeline.decode(encoded(PICTURE, exif=exif))

    np.testing.assert_array_equal(turned, np.rot90(PICTURE, k=-1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (5, 4)).save(file, "TIFF" if mode in ("CMYK", "LA") else "PNG")

    assert pipeline.decode(file.getvalue()).shape == (4, 5, 3)


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(PICTURE)[:200]])
def test_what_is_no_picture_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"cat\.png"):
        pipeline.preprocess((), data, what="cat.png")


@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=9),
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_picture_is_read_or_refused_and_nothing_else(
    kind: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(PICTURE, kind))
    for position, value in changes:
        data[position % len(data)] = value

    try:
        pixels = pipeline.decode(bytes(data), most_pixels=1 << 16)
    except DataError:
        return
    assert pixels.ndim == 3


@pytest.mark.parametrize("side", [8200, 10_000, 14_000])
def test_a_picture_too_large_is_refused_before_it_is_decoded(side: int) -> None:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")

    with pytest.raises(DataError, match="pixels"):
        pipeline.decode(file.getvalue())


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(DataError, match="60 x 40"):
        pipeline.preprocess((CenterCrop(width=61, height=10),), PICTURE)
    with pytest.raises(DataError, match="30 x 30 at 31, 0"):
        pipeline.preprocess((Crop(top=0, left=31, height=30, width=30),), PICTURE)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((Normalise(), Resize(shorter=5)), "before normalise"),
        ((Channels(order="bgr"), Resize(shorter=5)), "before channels"),
        ((Layout(to="NCHW"), Channels(order="gray")), "before normalise"),
        ((Normalise(), Normalise()), "normalise comes twice"),
        ((Normalise(), Dtype(to="UINT8")), "as they are"),
    ],
)
def test_steps_in_a_wrong_order_are_refused(steps: tuple[PreStep, ...], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        pipeline.preprocess(steps, PICTURE)


def test_pixels_of_another_form_are_refused() -> None:
    with pytest.raises(DataError, match="uint8"):
        pipeline.preprocess((), PICTURE.astype(np.float32))


@given(sides, sides, st.lists(geometric, max_size=4))
def test_a_frame_is_as_large_as_the_input_and_leads_back_to_the_picture(
    width: int, height: int, steps: list[PreStep]
) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    try:
        sample = pipeline.prepare(steps, picture)
    except DataError:
        return

    frame = sample.frame
    assert sample.array.shape == (frame.input_height, frame.input_width, 3)
    assert frame == pipeline.frame_of(steps, width, height)
    inside = np.array([[0.25 * width, 0.5 * height, 0.75 * width, height]], np.float32)
    scale = [frame.scale_x, frame.scale_y] * 2
    offset = [frame.offset_x, frame.offset_y] * 2
    there = (inside * scale + offset).astype(np.float32)
    np.testing.assert_allclose(frame.to_picture(there), inside, atol=1e-2)


@given(hnp.arrays(np.float32, (2, 5), elements=st.floats(-1e4, 1e4, width=32)))
def test_probabilities_add_up_and_the_best_comes_first(scores: np.ndarray) -> None:
    outputs = {"logits": scores}
    alone = pipeline.finish((Softmax(),), outputs, ONE * 2)
    best = pipeline.finish((Softmax(), TopK(k=3, labels=tuple("abcde"))), outputs, ONE * 2)

    np.testing.assert_allclose(alone["probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert set(best) == {"indices", "scores", "labels"}
    for i, row in enumerate(alone["probabilities"]):
        assert best["scores"][i].tolist() == sorted(row, reverse=True)[:3]
        assert [b"abcde"[k : k + 1] for k in best["indices"][i]] == best["labels"][i].tolist()


@given(hnp.arrays(np.float32, (1, 7), elements=st.floats(-600, 600, width=32)))
def test_a_sigmoid_stays_between_0_and_1(scores: np.ndarray) -> None:
    found = pipeline.finish((Sigmoid(),), {"y": scores}, ONE)["probabilities"]

    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-scores.astype(np.float64))), atol=1e-6)


def test_each_head_of_a_model_has_answers_of_its_own_name() -> None:
    outputs = {"age": np.array([[1.0, 3.0]]), "mood": np.array([[[[9.0]], [[0.0]]]])}
    steps = (
        TopK(k=1, output="age", prefix="age_"),
        Softmax(output="mood"),
        TopK(k=1, output="mood", prefix="mood_", labels=("glad", "sad")),
    )

    found = pipeline.finish(steps, outputs, ONE)

    assert found["age_indices"].tolist() == [[1]]
    assert found["mood_labels"].tolist() == [[b"glad"]]


def test_a_step_that_could_mean_two_outputs_is_refused() -> None:
    outputs = {"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}

    with pytest.raises(RecipeError, match="a, b"):
        pipeline.finish((TopK(),), outputs, ONE)
    with pytest.raises(RecipeError, match="no output 'c'"):
        pipeline.finish((TopK(output="c"),), outputs, ONE)
    with pytest.raises(RecipeError, match="last step"):
        pipeline.finish((TopK(output="a"), Softmax(output="a")), outputs, ONE)


def test_an_output_that_is_no_list_of_scores_is_named() -> None:
    with pytest.raises(EngineError, match=r"'y' has shape \[1, 2, 2\]"):
        pipeline.finish((TopK(),), {"y": np.zeros((1, 2, 2))}, ONE)


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)  # type: ignore[arg-type]


def test_the_input_of_a_picture_is_found_by_its_form() -> None:
    inputs = (spec("image", -1, 3, 24, 24), spec("scale", -1, 2))
    steps = (Resize(width=24, height=24), Normalise(), Layout(to="NCHW"))

    assert pipeline.picture_input(steps, inputs).name == "image"
    with pytest.raises(RecipeError, match=r"gives FP32 \[24, 24, 3\].*'image' FP32"):
        pipeline.picture_input(steps[:2], inputs)
    with pytest.raises(RecipeError, match="gives UINT8"):
        pipeline.picture_input((Dtype(to="UINT8"), Layout(to="NCHW")), inputs)
    with pytest.raises(RecipeError, match="several inputs"):
        pipeline.picture_input(steps, (*inputs, spec("other", 1, 3, 24, 24)))


def test_what_a_pipeline_gives_is_known_before_it_is_run() -> None:
    outputs = (spec("logits", -1, 10),)

    found = pipeline.answers((Softmax(), TopK(k=20, labels=tuple("0123456789"))), outputs)

    assert found == (
        spec("labels", -1, 10, datatype="BYTES"),
        spec("scores", -1, 10),
        spec("indices", -1, 10, datatype="INT64"),
    )
    assert pipeline.answers((Softmax(),), outputs) == (spec("probabilities", -1, 10),)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (TopK(labels=("a", "b")), "2 labels.*10 classes"),
        (TopK(output="scores"), "gives 'scores', which the model"),
        (Boxes(family="decoded", output="scores", scores="none"), "no output 'none'"),
        (TopK(output="map"), r"\[1, 8, 8\].*takes scores"),
    ],
)
def test_steps_that_do_not_fit_the_outputs_are_refused(step: TopK | Boxes, why: str) -> None:
    outputs: tuple[TensorSpec, ...] = (spec("scores", -1, 10), spec("map", 1, 8, 8))
    if isinstance(step, TopK) and step.output is None:
        outputs = outputs[:1]

    with pytest.raises(RecipeError, match=why):
        pipeline.answers((step,), outputs)
