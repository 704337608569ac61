"""The rules of pruning: how many channels in a turn, which ones, and how much each group gives."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_converters.passes.pruning.allocation import Curve, allocate
from edgekit_converters.passes.pruning.elimination import Problem, eliminate, energy, fitted
from edgekit_converters.passes.pruning.layers import Matrix
from edgekit_converters.passes.pruning.moments import Moments, ridged
from edgekit_converters.passes.pruning.plan import turns


@given(st.integers(1, 600), st.data(), st.sampled_from([1, 4, 8, 16, 32]))
def test_what_stays_is_a_multiple_and_at_least_half(
    size: int, data: st.DataObject, multiple: int
) -> None:
    units = data.draw(st.integers(0, size))
    left = size

    for count in turns(size, units, multiple):
        left -= count
        assert left % multiple == 0
        assert left >= max(multiple, size / 2)
    assert size - left <= units


def problem(seed: int, *, features: int = 6, per_unit: int = 1) -> Problem:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((features, features))
    return Problem(
        weight=rng.standard_normal((4, features)),
        covariance=mix @ mix.T,
        positions=np.arange(features).reshape(-1, per_unit),
    )


def loss(of: Problem, weight: Matrix) -> float:
    return energy(of.weight - weight, ridged(of.covariance))


@given(st.integers(0, 1000))
def test_the_first_unit_to_go_is_the_one_whose_best_replacement_errs_least(seed: int) -> None:
    of = problem(seed)
    errors = []
    for unit in range(6):
        kept = np.arange(6) != unit
        weight = np.zeros_like(of.weight)
        weight[:, kept] = fitted(of.weight, of.covariance, kept)
        errors.append(loss(of, weight))

    removal = next(eliminate([of], [1]))

    assert removal.units.tolist() == [int(np.argmin(errors))]
    assert loss(of, removal.weights[0]) == pytest.approx(min(errors))


@given(st.integers(0, 1000), st.sampled_from([1, 2]))
def test_weights_after_several_turns_are_those_of_least_squares(seed: int, per_unit: int) -> None:
    of = problem(seed, features=8, per_unit=per_unit)
    removals = []
    for removal in eliminate([of], [1, 2]):
        removals.append(removal.units)
        weights = removal.weights[0].copy()
    gone = of.positions[np.concatenate(removals)].reshape(-1)
    kept = ~np.isin(np.arange(8), gone)

    np.testing.assert_allclose(weights[:, kept], fitted(of.weight, of.covariance, kept), rtol=1e-6)
    assert not weights[:, ~kept].any()


def test_a_twin_goes_before_channels_that_stand_alone() -> None:
    covariance = np.eye(5)
    covariance[1, 3] = covariance[3, 1] = 1
    of = Problem(np.ones((2, 5)), covariance, np.arange(5).reshape(-1, 1))

    removal = next(eliminate([of], [1]))

    assert removal.units.tolist()[0] in (1, 3)
    np.testing.assert_allclose(removal.weights[0].sum(axis=1), 5, rtol=0.03)


def test_every_reader_of_a_group_has_a_say() -> None:
    needs_first = Problem(np.array([[9.0, 1.0, 0.0]]), np.eye(3), np.array([[0], [1], [2]]))
    needs_last = Problem(np.array([[0.0, 1.0, 9.0]]), np.eye(3), np.array([[0], [1], [2]]))

    removal = next(eliminate([needs_first, needs_last], [1]))

    assert removal.units.tolist() == [1]


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 700)).astype(np.float32)
    whole, first, second = (Moments(5) for _ in range(3))
    whole.add(rows)
    first.add(rows[:, :100])
    second.add(rows[:, 100:])
    first.include(second)

    for centred in (True, False):
        np.testing.assert_allclose(
            first.covariance(centred=centred), whole.covariance(centred=centred), atol=1e-5
        )
    np.testing.assert_allclose(whole.covariance(centred=True), np.cov(rows, bias=True), atol=1e-5)
    assert not whole.mean(centred=False).any()


curves = st.lists(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1)), max_size=4).map(
        lambda steps: Curve(
            tuple(np.cumsum([0.0, *(error for error, _ in steps)]).tolist()),
            tuple(np.cumsum([0.0, *(saved for _, saved in steps)]).tolist()),
        )
    ),
    max_size=4,
)


@given(curves, st.floats(0, 4))
def test_what_is_wanted_is_saved_or_everything_is_taken(given: list[Curve], wanted: float) -> None:
    chosen = allocate(given, wanted)
    saved = sum(curve.saved[count] for curve, count in zip(given, chosen, strict=True))
    everything = tuple(len(curve.errors) - 1 for curve in given)

    assert saved >= wanted - 1e-9 or chosen == everything


def test_the_cheapest_group_gives_first() -> None:
    dear = Curve(errors=(0.0, 0.5, 1.0), saved=(0.0, 1.0, 2.0))
    cheap = Curve(errors=(0.0, 0.1, 0.9), saved=(0.0, 1.0, 2.0))

    assert allocate([dear, cheap], 1.0) == (0, 1)
    assert allocate([dear, cheap], 2.0) == (1, 1)


def test_a_dear_turn_is_taken_for_the_cheap_ones_behind_it() -> None:
    steep = Curve(errors=(0.0, 0.3, 0.3, 0.3), saved=(0.0, 1.0, 2.0, 3.0))
    even = Curve(errors=(0.0, 0.2, 0.4, 0.6), saved=(0.0, 1.0, 2.0, 3.0))

    assert allocate([steep, even], 3.0) == (3, 0)


@given(st.integers(0, 200))
def test_weights_that_stand_in_are_better_than_any_neighbour(seed: int) -> None:
    of = problem(seed)
    for kept in (np.isin(np.arange(6), pair) for pair in combinations(range(6), 4)):
        best = np.zeros_like(of.weight)
        best[:, kept] = fitted(of.weight, of.covariance, kept)
        other = best.copy()
        other[:, kept] += np.random.default_rng(seed).standard_normal((4, 4)) * 0.01

        assert loss(of, best) <= loss(of, other)
