"""Drift: what a sample becomes, what a reference holds, and when two sides differ."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edgekit.drift import reference as references
from edgekit.drift.judge import MIN_CLUSTERS, judge, judge_parts
from edgekit.drift.reference import BINS, MAX_CLUSTERS, NOT_FINITE, bins_of, edges_of, part_of
from edgekit.drift.sketch import merged, pack, unpack
from edgekit.drift.views import MAX_VALUES, View, view_of
from edgekit.errors import ManifestError, MessageError
from edgekit.messages import DriftSketch
from tests.runtime import drifting

NUMBERS = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.uint8, np.int64, np.bool_]),
    arrays.array_shapes(min_dims=0, max_dims=4, max_side=9),
)
FLOATS = st.floats(allow_nan=True, allow_infinity=True)


# Views.


@given(NUMBERS)
def test_each_sample_becomes_as_many_numbers_as_its_view_has_names(sample: NDArray[Any]) -> None:
    view = view_of("x", sample)
    assert view is not None
    row = view.row(sample, 0)
    assert row is not None

    numbers = view.measure(row)

    assert len(numbers) == len(view.features) == len(set(view.features))
    assert not np.isinf(numbers).any()


@given(NUMBERS)
def test_scores_become_class_confidence_and_entropy(sample: NDArray[Any]) -> None:
    view = view_of("y", sample, scores=True, softmax=True)
    assert view is not None
    found = view.measure(sample)

    if np.isfinite(found).all():
        best, confidence, entropy = found
        assert 0 <= best < sample.size
        assert 1 / sample.size <= confidence + 1e-9
        assert -1e-9 <= entropy <= 1 + 1e-9


def test_a_picture_gives_the_same_numbers_in_both_layouts() -> None:
    picture = np.random.default_rng(1).random((3, 40, 40)).astype(np.float32)
    first, last = view_of("x", picture), view_of("x", picture.transpose(1, 2, 0).copy())
    assert first is not None
    assert last is not None
    assert (first.axis, last.axis, first.size) == (0, 2, 3)

    np.testing.assert_allclose(
        first.measure(picture), last.measure(picture.transpose(1, 2, 0)), rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(3, 500, 700), (500, 700, 3), (1_000_000,), (6, 100_000)])
def test_a_large_sample_is_looked_at_all_over_but_not_whole(shape: tuple[int, ...]) -> None:
    sample = np.random.default_rng(2).random(shape).astype(np.float32)
    view = view_of("x", sample)
    assert view is not None
    names = [name for name in view.features if name.endswith("mean")]
    means = dict(zip(view.features, view.measure(sample), strict=True))

    for name in names:
        assert means[name] == pytest.approx(0.5, abs=5 / np.sqrt(MAX_VALUES / len(names) / 12) / 12)
    # What lies in one half only still shows.
    sample.reshape(-1)[sample.size // 2 :] = np.nan
    assert np.isnan(view.measure(sample)[:-1]).any()


def test_one_value_that_is_not_finite_makes_its_channel_no_number() -> None:
    picture = np.zeros((3, 20, 20), np.float32)
    picture[1, 4, 4] = np.inf
    view = view_of("x", picture)
    assert view is not None
    found = dict(zip(view.features, view.measure(picture), strict=True))

    assert np.isnan(found["x channel 1 mean"])
    assert found["x channel 0 std"] == 0


def test_a_sample_of_one_value_everywhere_is_constant() -> None:
    view = view_of("x", np.full((8, 8), 3.0, np.float32))
    assert view is not None
    assert view.measure(np.full((8, 8), 7.0, np.float32))[-1] == 1
    assert view.measure(np.eye(8, dtype=np.float32))[-1] == 0


def test_a_blurred_picture_is_less_rough() -> None:
    sharp = np.random.default_rng(3).random((1, 64, 64)).astype(np.float32)
    view = view_of("x", sharp)
    assert view is not None
    place = [name.endswith("roughness") for name in view.features].index(True)
    blurred = (sharp + np.roll(sharp, 1, 2) + np.roll(sharp, 2, 2)) / 3

    assert view.measure(blurred)[place] < 0.7 * view.measure(sharp)[place]


def test_a_row_of_another_shape_has_no_view() -> None:
    view = view_of("x", np.zeros((3, 8, 8), np.float32))
    assert view is not None

    assert view.row(np.zeros((2, 3, 9, 7), np.float32), 1) is not None
    assert view.row(np.zeros((2, 4, 8, 8), np.float32), 1) is None
    assert view.row(np.zeros((8, 8), np.float32), 0) is None


def test_texts_have_no_view() -> None:
    assert view_of("x", np.array(["a"], object)) is None


# References.


def test_bins_of_many_different_numbers_are_as_full_as_each_other() -> None:
    values = np.random.default_rng(4).permutation(800).astype(np.float64)
    table = np.array([edges_of(values)])

    assert np.bincount(bins_of(values[:, np.newaxis], table)[:, 0]).tolist() == [100] * 8


def test_few_different_numbers_have_a_bin_each() -> None:
    values = np.array([0.0, 0, 0, 0, 0, 0, 0, 1, 5, 5])
    table = np.full((1, NOT_FINITE - 1), np.inf)
    table[0, :2] = edges_of(values)

    assert np.bincount(bins_of(values[:, np.newaxis], table)[:, 0]).tolist() == [7, 1, 2]


@example(np.array([9.9e307, 8.1e307]))
@given(arrays.arrays(np.float64, st.integers(1, 200), elements=FLOATS))
def test_every_number_is_in_one_bin_and_larger_ones_in_no_lower(values: NDArray[Any]) -> None:
    edges = edges_of(values)
    table = np.full((1, NOT_FINITE - 1), np.inf)
    table[0, : len(edges)] = edges
    bins = bins_of(values[:, np.newaxis], table)[:, 0]

    assert list(edges) == sorted(set(edges))
    assert ((bins == NOT_FINITE) == ~np.isfinite(values)).all()
    finite = np.isfinite(values)
    assert (np.diff(bins[finite][np.argsort(values[finite])]) >= 0).all()


@given(st.integers(1, 300), st.integers(1, 60))
def test_clusters_are_whole_groups_and_hold_each_sample_once(count: int, most: int) -> None:
    groups = np.random.default_rng(count).integers(0, most, count)
    clusters = references.clusters_of(groups)

    assert sorted(np.concatenate(clusters).tolist()) == list(range(count))
    assert len(clusters) == min(MAX_CLUSTERS, len(np.unique(groups)))
    for a in clusters:
        rest = np.setdiff1d(np.arange(count), a)
        assert not np.isin(groups[rest], groups[a]).any()


def test_the_same_samples_give_the_same_bytes_and_come_back() -> None:
    raw = references.encode(drifting.reference())

    assert raw == references.encode(drifting.reference())
    assert references.decode(raw) == drifting.reference()


def test_counts_of_a_reference_are_its_samples() -> None:
    part = drifting.reference(count=100).inputs

    assert part.counts().sum(axis=(0, 2)).tolist() == [100] * bundle_features()
    assert part.edges().shape == (bundle_features(), NOT_FINITE - 1)


def bundle_features() -> int:
    return 16


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"name": "other"}, "features are not those of the views"),
        ({"edges": [2.0, 1.0]}, "two counts more than edges"),
        ({"edges": [1.0] * 7}, "edges of x"),
        ({"edges": [0.0] * 8}, "length <= 7"),
    ],
)
def test_a_reference_that_is_not_whole_is_refused(change: dict[str, Any], wrong: str) -> None:
    tree = msgspec.json.decode(references.encode(drifting.reference()))
    tree["inputs"]["features"][0] |= change

    with pytest.raises(ManifestError, match=wrong):
        references.decode(msgspec.json.encode(tree))


def test_a_reference_with_too_many_features_is_refused() -> None:
    part = drifting.reference().inputs
    tree = {"inputs": part, "variants": {f"v{i}": part for i in range(4)}}

    with pytest.raises(ManifestError, match="80 features, at most 72"):
        references.decode(msgspec.json.encode(tree))


@given(st.binary(max_size=200))
def test_what_is_no_reference_is_refused(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        references.decode(raw)


# Judging.


def window(samples: NDArray[Any], edges: NDArray[Any], *, blocks: int = 16) -> NDArray[Any]:
    """Counts [blocks, features, bins] of numbers [n, features]."""
    counts = np.zeros((blocks, samples.shape[1], BINS), np.int64)
    for table, rows in zip(counts, np.array_split(samples, blocks), strict=True):
        for bins in bins_of(rows, edges):
            table[np.arange(len(bins)), bins] += 1
    return counts


def p_values(count: int, *, shift: float, scenes: int | None = None) -> NDArray[np.float64]:
    """Of windows with six features, each against a reference of its own.

    Args:
        shift: of the first feature, in standard deviations.
        scenes: sources that a block and a reference's cluster show; without it each sample is one.
    """
    rng = np.random.default_rng(5)
    view = View(tensor="x", kind="values", rank=1, size=6)

    def draw(samples: int, sources: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        groups = np.arange(samples) % sources
        return rng.standard_normal((samples, 6)) + rng.standard_normal((sources, 6))[groups], groups

    found = []
    for _ in range(count):
        numbers, groups = draw(320, 320 if scenes is None else 24 * scenes)
        part = part_of([view], numbers, groups)
        seen = [draw(20, 20 if scenes is None else scenes)[0] for _ in range(16)]
        stream = np.concatenate(seen)
        stream[:, 0] += shift
        finding = judge(part.counts(), window(stream, part.edges()), rng=rng)
        assert finding is not None
        found.append(finding.p)
    return np.array(found)


@pytest.mark.parametrize("scenes", [None, 2])
def test_without_drift_alarms_are_as_rare_as_stated(scenes: int | None) -> None:
    found = p_values(300, shift=0.0, scenes=scenes)

    # 99.9 % of such studies lie below these.
    assert (found <= 0.05).mean() <= 0.095
    assert (found <= 0.01).mean() <= 0.034


def test_drift_is_seen_and_its_feature_named() -> None:
    assert (p_values(20, shift=1.5) <= 4e-4).mean() >= 0.9


def test_samples_of_few_scenes_need_a_larger_shift() -> None:
    assert np.median(p_values(20, shift=1.0, scenes=2)) > np.median(p_values(20, shift=1.0))


def test_the_feature_that_differs_is_the_one_that_is_named() -> None:
    part = drifting.reference().inputs
    numbers = drifting.inputs(512, seed=9).astype(np.float64)
    numbers[:, 11] += 1.0
    finding = judge(part.counts(), window(numbers, part.edges()), rng=np.random.default_rng(1))

    assert finding is not None
    assert part.features[finding.feature].name == "x[11]"
    assert 0.2 < finding.distance < 0.8
    assert finding.p == 1 / 20_000


def test_values_that_are_not_finite_are_drift() -> None:
    part = drifting.reference().inputs
    numbers = drifting.inputs(512, seed=9).astype(np.float64)
    numbers[::3, 5] = np.nan
    finding = judge(part.counts(), window(numbers, part.edges()), rng=np.random.default_rng(1))

    assert finding is not None
    assert finding.p < 4e-4
    assert part.features[finding.feature].name == "x[5]"


def test_a_number_that_never_varied_and_then_does_is_drift() -> None:
    view = View(tensor="x", kind="values", rank=1, size=1)
    part = part_of([view], np.ones((100, 1)), np.arange(100))
    stream = np.where(np.arange(512)[:, np.newaxis] % 2, 1.0, 1.5)
    finding = judge(part.counts(), window(stream, part.edges()), rng=np.random.default_rng(1))

    assert finding is not None
    assert finding.p < 4e-4


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
@settings(max_examples=30)
def test_too_few_clusters_or_no_feature_give_no_verdict(ours: int, theirs: int, n: int) -> None:
    counts = np.ones((40, n, BINS), np.uint16)
    finding = judge(counts[:theirs], counts[:ours], rng=np.random.default_rng(1))

    assert (finding is None) == (min(ours, theirs) < MIN_CLUSTERS or n == 0)
    if finding is not None:
        assert 0 < finding.p <= 1
        assert finding.distance < 1e-9


def test_clusters_without_enough_samples_of_a_part_are_left_out() -> None:
    part = drifting.reference().inputs
    counts = window(drifting.inputs(512, seed=9).astype(np.float64), part.edges())
    counts[3:] = 0

    pairs = [(part.counts(), counts)]
    assert judge_parts(pairs, least_rows=8, rng=np.random.default_rng(1)) is None


def test_several_parts_share_the_rate_of_false_alarms() -> None:
    part = drifting.reference().inputs
    counts = window(drifting.inputs(512, seed=9, shift=2).astype(np.float64), part.edges())
    calm = window(drifting.inputs(512, seed=10).astype(np.float64), part.edges())
    pairs = [(part.counts(), calm), (part.counts(), counts), (part.counts(), calm)]
    found = judge_parts(pairs, least_rows=8, rng=np.random.default_rng(1))

    assert found is not None
    assert found[0] == 1
    assert found[1].p == pytest.approx(3 / 20_000)


# Sketches.

COUNTS = arrays.arrays(np.uint32, st.tuples(st.integers(0, 72), st.just(BINS)))


@given(COUNTS)
def test_a_sketch_comes_back(counts: NDArray[Any]) -> None:
    assert (unpack(pack(counts, reference="0" * 64, rows=1)) == counts).all()


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_sketches_add_up(a: int, b: int) -> None:
    one = pack(np.full((5, BINS), a), reference="0" * 64, rows=a)
    two = pack(np.full((5, BINS), b), reference="0" * 64, rows=b)

    both = merged(one, two)

    assert both == merged(two, one)
    assert both.rows == a + b
    assert (unpack(both) == a + b).all()


def test_sketches_of_two_references_do_not_add_up() -> None:
    one = pack(np.zeros((1, BINS)), reference="0" * 64, rows=1)
    two = pack(np.zeros((1, BINS)), reference="1" * 64, rows=1)

    with pytest.raises(MessageError, match="two references"):
        merged(one, two)


@given(st.text(max_size=60))
def test_what_is_no_sketch_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        unpack(DriftSketch(reference="0" * 64, rows=1, counts=text + "!"))


def test_a_sketch_that_unfolds_to_gigabytes_is_refused_before_it_does() -> None:
    bomb = pack(np.zeros((1, BINS)), reference="0" * 64, rows=1)
    stream = base64.b64encode(zlib.compress(bytes(1 << 22), 9)).decode()

    with pytest.raises(MessageError, match="not whole features"):
        unpack(msgspec.structs.replace(bomb, counts=stream))
