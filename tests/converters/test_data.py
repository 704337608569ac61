"""Data is checked once against the model, and split so that nothing stands on two sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgekit.errors import DataError
from edgekit.manifest import TensorSpec
from edgekit.recipe import Split
from edgekit.steps import Layout, Normalise, PreStep, Resize
from edgekit_converters import data, dataset
from edgekit_converters.data import MIN_EVALUATION, MIN_EVALUATION_GROUPS, Samples
from edgekit_converters.labels import check_classes

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8))
STEPS: tuple[PreStep, ...] = (Resize(width=8, height=8), Normalise(), Layout(to="NCHW"))
PICTURE = TensorSpec(name="picture", datatype="FP32", shape=(-1, 3, 8, 8))


def write(folder: Path, **arrays: NDArray[Any]) -> Path:
    path = folder / "data.npz"
    np.savez(path, **cast("dict[str, Any]", arrays))
    return path


def load(path: Path, inputs: Sequence[TensorSpec], steps: Sequence[PreStep] = ()) -> Samples:
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return dataset.load(path, inputs, steps=steps, scratch=scratch)


def floats(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(shape, np.float32)


def numbered(groups: list[int]) -> Samples:
    """Samples that hold their own position."""
    positions = np.arange(len(groups), dtype=np.float32)
    return Samples({"x": positions}, None, np.array(groups, np.int64))


# What fits.


@pytest.mark.parametrize(
    ("shape", "array"),
    [
        ((-1, 3, 4), floats(5, 3, 4)),
        ((1, 3, 4), floats(5, 3, 4)),
        ((2, 1, 128), floats(5, 2, 1, 128)),
        ((), floats(5)),
        ((-1, -1), floats(5, 9)),
    ],
)
def test_samples_stand_in_the_batch_axis_or_before_the_whole_input(
    shape: tuple[int, ...], array: NDArray[np.float32], tmp_path: Path
) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=shape)

    samples = load(write(tmp_path, x=array), [spec])

    assert samples.count == 5


def test_labels_and_groups_come_along(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        image=floats(4, 1, 8, 8),
        labels=np.array([3, 1, 2, 0], np.uint8),
        groups=np.array([0, 0, 1, 1]),
    )

    samples = load(path, [IMAGE])

    assert samples.labels is not None
    assert samples.labels.tolist() == [3, 1, 2, 0]
    assert samples.groups.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "labels",
    [
        floats(4),
        floats(4, 3),
        np.arange(4 * 8 * 8, dtype=np.int32).reshape(4, 8, 8) - 1,
        floats(4, 2, 5),
        np.full((4, 7), -1),
    ],
)
def test_labels_are_targets_masks_boxes_or_sequences_too(
    labels: NDArray[Any], tmp_path: Path
) -> None:
    samples = load(write(tmp_path, image=floats(4, 1, 8, 8), labels=labels), [IMAGE])

    assert samples.labels is not None
    assert samples.labels.dtype == labels.dtype
    assert np.array_equal(samples.take(np.array([2, 0])).labels, labels[[2, 0]])  # type: ignore[arg-type]


def test_an_input_may_be_called_labels(tmp_path: Path) -> None:
    spec = TensorSpec(name="labels", datatype="FP32", shape=(-1, 2))

    samples = load(write(tmp_path, labels=floats(3, 2)), [spec])

    assert samples.labels is None
    assert samples.count == 3


# What does not.


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"picture": floats(4, 1, 8, 8)}, "'picture' is no input"),
        ({"labels": np.zeros(4, np.int64)}, "no array for input 'image'"),
        ({"image": floats(4, 1, 8, 8).astype(np.float64)}, "is float64, the model takes FP32"),
        ({"image": floats(4, 3, 8, 8)}, r"shape \[4, 3, 8, 8\], which does not fit"),
        ({"image": np.array(1.0, np.float32)}, "is a scalar"),
        ({"image": floats(4, 1, 8, 8), "labels": np.zeros(3, np.int64)}, "there are 4 samples"),
        ({"image": floats(4, 1, 8, 8), "labels": np.array(["cat"] * 4)}, "expected numbers"),
        ({"image": floats(4, 1, 8, 8), "labels": np.full((4, 2), np.nan)}, "NaN in sample 0"),
        ({"image": floats(4, 1, 8, 8), "groups": np.zeros((4, 1), np.int64)}, "groups"),
        ({"image": floats(4, 1, 8, 8), "groups": np.zeros(4)}, "groups is float64"),
        ({"image": np.full((4, 1, 8, 8), np.nan, np.float32)}, "holds NaN in sample 0"),
        ({"image": np.full((4, 1, 8, 8), np.inf, np.float32)}, "infinite value in sample 0"),
    ],
)
def test_an_array_that_does_not_fit_is_named(
    arrays: dict[str, NDArray[Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, **arrays), [IMAGE])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no zip at all", b"\x93NUMPY"])
def test_a_file_that_is_no_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"not a \.npz file"):
        load(path, [IMAGE])


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, image=np.array([{"a": 1}], dtype=object))

    with pytest.raises(DataError, match="plain arrays"):
        load(path, [IMAGE])


def test_a_value_that_is_no_number_is_found_in_its_sample(tmp_path: Path) -> None:
    wide = TensorSpec(name="x", datatype="FP32", shape=(-1, 1 << 18))
    values = np.zeros((9, 1 << 18), np.float32)
    values[7, 5] = np.inf

    with pytest.raises(DataError, match="infinite value in sample 7"):
        load(write(tmp_path, x=values), [wide])


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "nothing.npz", [IMAGE])


# Folders of pictures.


def write_picture(path: Path, *, grey: int, size: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (grey, grey, grey)).save(path)


def test_one_folder_per_class_gives_labels_and_names(tmp_path: Path) -> None:
    for name, grey in (("cat", 10), ("dog", 200)):
        write_picture(tmp_path / name / "one.png", grey=grey)

    samples = load(tmp_path, [PICTURE], steps=STEPS)

    assert samples.names == ("cat", "dog")
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1]
    assert samples.arrays["picture"].shape == (2, 3, 8, 8)


def test_a_table_gives_labels_to_files(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", grey=1)
    (tmp_path / "labels.csv").write_text("file,label\na.png,7\n")

    samples = load(tmp_path, [PICTURE], steps=STEPS)

    assert samples.labels is not None
    assert samples.labels.tolist() == [7]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\na.png,cat\n", "line 2: expected a file and a whole number"),
        ("name,class\na.png,1\n", "line 2"),
        ("file,label\n../a.png,1\n", "outside the folder"),
        ("file,label\nmissing.png,1\n", "cannot be read"),
    ],
)
def test_a_wrong_table_is_named_with_its_line(table: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    write_picture(folder / "a.png", grey=1)
    (folder / "labels.csv").write_text(table)

    with pytest.raises(DataError, match=message):
        load(folder, [PICTURE], steps=STEPS)


def test_pictures_without_preprocess_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", grey=1)

    with pytest.raises(DataError, match="no preprocess"):
        load(tmp_path, [PICTURE])


def test_pictures_that_end_in_different_sizes_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", grey=1)
    write_picture(tmp_path / "b.png", grey=1, size=9)

    with pytest.raises(DataError, match="others"):
        load(tmp_path, [PICTURE], steps=(Layout(to="NCHW"),))


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")

    with pytest.raises(DataError, match=r"a\.png"):
        load(tmp_path, [PICTURE], steps=STEPS)


# Parts.


@given(
    groups=st.lists(st.integers(0, 20), min_size=8, max_size=120),
    golden=st.integers(1, 6),
    calibration=st.floats(0, 0.8),
    selection=st.floats(0, 0.8),
    seed=st.integers(0, 5),
)
def test_parts_never_share_a_sample_or_a_group(
    groups: list[int], golden: int, calibration: float, selection: float, seed: int
) -> None:
    rule = Split(golden=golden, calibration=calibration, selection=selection, seed=seed)
    try:
        parts = data.split(numbered(groups), rule)
    except DataError:
        assume(False)

    assert parts.calibration is not None
    assert parts.selection is not None
    assert parts.evaluation is not None
    each = [parts.golden, parts.calibration, parts.evaluation]
    if parts.selection is not parts.calibration:
        each.append(parts.selection)
    assert parts.golden.count == golden
    assert min(part.count for part in each) >= 1
    positions = [set(np.asarray(part.arrays["x"]).tolist()) for part in each]
    of_groups = [set(part.groups.tolist()) for part in each]
    for sets in (positions, of_groups):
        assert sum(map(len, sets)) == len(set.union(*sets))
    for part in each[1:]:
        assert part.count == sum(group in part.groups for group in groups)


@given(st.lists(st.integers(0, 20), min_size=8, max_size=120), st.floats(0, 0.8))
def test_the_search_has_samples_of_its_own_only_where_evaluation_can_spare_them(
    groups: list[int], share: float
) -> None:
    try:
        parts = data.split(numbered(groups), Split(selection=share))
    except DataError:
        assume(False)

    assert parts.evaluation is not None
    shared = parts.selection is parts.calibration
    assert shared == any("chose on calibration samples" in note for note in parts.notes)
    if not shared:
        assert parts.evaluation.count >= MIN_EVALUATION
        assert len(set(parts.evaluation.groups.tolist())) >= MIN_EVALUATION_GROUPS


def test_the_same_data_is_split_the_same_way_each_time() -> None:
    samples = numbered(list(range(40)))

    first, second = (data.split(samples, Split(seed=3)) for _ in range(2))

    assert first.golden.groups.tolist() == second.golden.groups.tolist()


def test_ungrouped_samples_keep_the_shares_of_the_recipe() -> None:
    rule = Split(calibration=0.25, selection=0.2, golden=4)
    parts = data.split(numbered(list(range(100))), rule)

    each = (parts.golden, parts.calibration, parts.selection, parts.evaluation)
    assert [part.count for part in each if part] == [4, 25, 20, 51]
    assert parts.notes == ()


def test_few_samples_are_split_without_a_part_for_the_search_and_say_so() -> None:
    parts = data.split(numbered(list(range(30))), Split())

    assert parts.selection is parts.calibration
    assert "chose on calibration samples" in parts.notes[0]


def test_a_class_that_the_model_does_not_have_is_named() -> None:
    labels = np.arange(40) % 11
    samples = Samples({"x": floats(40)}, labels, np.arange(40))

    with pytest.raises(DataError, match="labels hold 10, the model has classes 0 to 9"):
        check_classes(data.split(samples, Split()), 10, what="data.npz")


def test_targets_that_are_no_classes_may_have_any_value() -> None:
    samples = Samples({"x": floats(40)}, floats(40) * 100, np.arange(40))

    check_classes(data.split(samples, Split()), 10, what="data.npz")


@pytest.mark.parametrize("groups", [[0], [0, 1, 2], [0] * 50, [0] * 25 + [1] * 25])
def test_too_few_samples_or_groups_are_refused(groups: list[int]) -> None:
    with pytest.raises(DataError, match=r"groups (cannot be split|are too few)"):
        data.split(numbered(groups), Split(golden=4))


def test_made_up_inputs_are_the_same_each_time_and_say_that_they_are_made_up() -> None:
    ids = TensorSpec(name="ids", datatype="INT64", shape=(-1, 12))

    first, second = (data.synthetic([IMAGE, ids], Split(golden=3)) for _ in range(2))

    assert first.origin == "synthetic"
    assert first.golden.arrays["image"].shape == (3, 1, 8, 8)
    assert set(np.unique(np.asarray(first.golden.arrays["ids"]))) <= {0, 1}
    for name in ("image", "ids"):
        assert np.array_equal(first.golden.arrays[name], second.golden.arrays[name])


@pytest.mark.parametrize(
    ("shape", "message"),
    [((-1, 3, -1, -1), "--input x="), ((1, 3, 1 << 20, 1 << 20), "smaller shape")],
)
def test_an_input_that_cannot_be_made_up_says_what_to_do(
    shape: tuple[int, ...], message: str
) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=shape)

    with pytest.raises(DataError) as refused:
        data.synthetic([spec], Split())

    assert message in (refused.value.hint or "")
