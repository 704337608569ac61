"""The steps of a recipe give the same array on a workstation and on a board."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from edgekit.errors import DataError, RecipeError
from edgekit.recipe import CenterCrop, Layout, Normalise, Resize, Softmax, TopK
from edgekit_runtime import pipeline

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_a_file_and_its_pixels_give_the_same_input() -> None:
    steps = (Resize(shorter=32), CenterCrop(width=24, height=24), Normalise(), Layout(to="NCHW"))

    from_file = pipeline.preprocess(steps, encoded(PICTURE))

    assert from_file.shape == (3, 24, 24)
    assert from_file.flags.c_contiguous
    np.testing.assert_array_equal(from_file, pipeline.preprocess(steps, PICTURE))


def test_resizing_is_pillows() -> None:
    got = pipeline.preprocess((Resize(width=20, height=30, resample="bilinear"),), PICTURE)

    want = Image.fromarray(PICTURE).resize((20, 30), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got, np.asarray(want, dtype=np.float32))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_normalising_before_or_after_layout_is_the_same(pixels: np.ndarray) -> None:
    normalise = Normalise(mean=(127.0, 100.0, 1.0), std=(128.0, 2.0, 3.0))

    first = pipeline.preprocess((normalise, Layout(to="NCHW")), pixels)

    np.testing.assert_array_equal(
        first, pipeline.preprocess((Layout(to="NCHW"), normalise), pixels)
    )
    np.testing.assert_allclose(first[0], (pixels[..., 0].astype(np.float32) - 127) / 128)


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


@pytest.mark.parametrize("side", [8200, 10_000, 14_000])
def test_a_picture_too_large_is_refused_before_it_is_decoded(side: int) -> None:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")

    with pytest.raises(DataError, match="pixels"):
        pipeline.decode(file.getvalue())


def test_a_crop_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(DataError, match="60 x 40"):
        pipeline.preprocess((CenterCrop(width=61, height=10),), PICTURE)


def test_steps_in_a_wrong_order_are_refused() -> None:
    with pytest.raises(RecipeError, match="before normalise"):
        pipeline.preprocess((Normalise(), Resize(shorter=5)), PICTURE)
    with pytest.raises(RecipeError, match="last step"):
        pipeline.postprocess((TopK(), Softmax()), np.zeros((1, 3)))


def test_pixels_of_another_form_are_refused() -> None:
    with pytest.raises(DataError, match="uint8"):
        pipeline.preprocess((), PICTURE.astype(np.float32))


@given(hnp.arrays(np.float32, (2, 5), elements=st.floats(-1e4, 1e4, width=32)))
def test_probabilities_add_up_and_the_best_comes_first(scores: np.ndarray) -> None:
    probabilities = pipeline.postprocess((Softmax(),), scores)
    ranked = pipeline.postprocess((Softmax(), TopK(k=3, labels=tuple("abcde"))), scores)

    assert isinstance(probabilities, np.ndarray)
    assert isinstance(ranked, list)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    for row, best in zip(probabilities, ranked, strict=True):
        assert [one.score for one in best] == sorted(row, reverse=True)[:3]
        assert all(one.label == "abcde"[one.index] for one in best)
