"""The drift reference that a build puts into its bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.drift import reference as references
from edgekit.drift.reference import MAX_FEATURES
from edgekit_converters import drift_reference
from edgekit_converters.data import Samples

GROUPS = np.arange(60, dtype=np.int64) // 2
PICTURES = np.random.default_rng(1).random((60, 3, 12, 12)).astype(np.float32)
SCORES = np.random.default_rng(2).standard_normal((60, 10)).astype(np.float32)


def samples(**arrays: NDArray[Any]) -> Samples:
    return Samples(arrays=arrays, labels=None, groups=GROUPS)


def test_it_holds_inputs_and_the_answers_of_each_variant() -> None:
    answered = drift_reference.outputs_of({"scores": SCORES}, GROUPS)
    raw = drift_reference.entries(samples(x=PICTURES), {"int8": answered, "float": answered})
    found = references.decode(raw["drift.json"])

    assert set(found.variants) == {"int8", "float"}
    assert found.inputs.groups == 30
    assert found.inputs.views[0].size == 3
    assert [f.name for f in found.variants["int8"].features] == [
        "scores class",
        "scores confidence",
        "scores entropy",
    ]


def test_the_same_samples_give_the_same_bytes() -> None:
    answered = drift_reference.outputs_of({"scores": SCORES}, GROUPS)
    first = drift_reference.entries(samples(x=PICTURES), {"int8": answered})

    assert first == drift_reference.entries(samples(x=PICTURES.copy()), {"int8": answered})


@pytest.mark.parametrize("given_as", ["logits", "probabilities"])
def test_confidence_does_not_depend_on_where_softmax_is_done(given_as: str) -> None:
    powers = np.exp(SCORES)
    shares = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    part = drift_reference.outputs_of({"y": SCORES if given_as == "logits" else shares}, GROUPS)
    other = drift_reference.outputs_of({"y": shares}, GROUPS)

    assert part is not None
    assert other is not None
    assert part.features[1].counts == other.features[1].counts


def test_samples_of_few_sources_make_no_reference() -> None:
    few = Samples(arrays={"x": PICTURES}, labels=None, groups=GROUPS % 7)

    assert drift_reference.entries(few, {}) == {}
    assert drift_reference.outputs_of({"y": SCORES}, GROUPS % 7) is None


def test_without_samples_there_is_none() -> None:
    assert drift_reference.entries(None, {}) == {}


def test_many_inputs_and_variants_stay_within_the_limit() -> None:
    wide = np.random.default_rng(3).random((60, 32)).astype(np.float32)
    answered = drift_reference.outputs_of({f"y{i}": SCORES[:, :4] for i in range(9)}, GROUPS)
    raw = drift_reference.entries(
        samples(a=wide, b=wide, c=PICTURES), {f"v{i}": answered for i in range(12)}
    )
    found = references.decode(raw["drift.json"])

    features = [len(part.features) for part in (found.inputs, *found.variants.values())]
    assert sum(features) <= MAX_FEATURES
    assert features[0] <= drift_reference.MAX_INPUT_FEATURES
    assert found.variants


def test_a_sample_of_another_shape_counts_as_no_number() -> None:
    odd = np.empty(60, object)
    odd[:] = [PICTURES[0]] * 59 + [PICTURES[0][:2]]

    part = drift_reference.part({"x": odd}, GROUPS, most=40)

    assert part is not None
    assert sum(row[-1] for row in part.features[0].counts) == 1


def test_answers_that_are_texts_are_left_out() -> None:
    texts = np.array([["a"]] * 60, object)

    assert drift_reference.outputs_of({"labels": texts}, GROUPS) is None
