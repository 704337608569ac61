"""Averaging and what is kept out of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit import messages, signed_frame, tensors
from edgekit.fleet import aggregate
from edgekit.fleet.aggregate import Average
from edgekit.fleet.open_round import Keys, OpenRound
from edgekit.messages import Refusal, RoundOpen, UpdateHeader
from edgekit.signing import SigningKey
from edgekit.tensors import Arrays

BASE: Arrays = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1, -1], np.float32),
}
CLOSES_AT = 2_000_000_000_000
weights = st.lists(
    st.tuples(st.integers(1, 10_000), st.integers(0, 2**32 - 1)), min_size=1, max_size=12
)


def update(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 1, a.shape).astype(np.float32) for name, a in BASE.items()}


def plain_mean(given: list[tuple[int, int]], name: str) -> NDArray[np.float64]:
    stack = np.stack([update(seed)[name].astype(np.float64) for _, seed in given])
    return np.average(stack, axis=0, weights=[samples for samples, _ in given])


@given(weights)
def test_the_average_is_the_plain_weighted_mean(given: list[tuple[int, int]]) -> None:
    average = Average(BASE)
    for samples, seed in given:
        average.add(update(seed), samples=samples)

    for name, array in average.result().items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, BASE[name] + plain_mean(given, name), atol=1e-5)


@given(weights, st.randoms(use_true_random=False))
def test_the_order_of_updates_does_not_matter(
    given: list[tuple[int, int]], random: st.DataObject
) -> None:
    first, second = Average(BASE), Average(BASE)
    for samples, seed in given:
        first.add(update(seed), samples=samples)
    random.shuffle(given)  # type: ignore[attr-defined]
    for samples, seed in given:
        second.add(update(seed), samples=samples)

    for name, array in first.result().items():
        np.testing.assert_allclose(array, second.result()[name], atol=1e-6)


def test_without_updates_the_weights_stay() -> None:
    for name, array in Average(BASE).result().items():
        np.testing.assert_array_equal(array, BASE[name])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"w": BASE["w"]}, "wrong_names"),
        ({**BASE, "more": BASE["b"]}, "wrong_names"),
        ({**BASE, "b": np.zeros(3, np.float32)}, "wrong_shape"),
        ({**BASE, "b": np.zeros(2, np.float64)}, "wrong_datatype"),
        ({**BASE, "b": np.array([np.nan, 0], np.float32)}, "not_finite"),
        ({**BASE, "b": np.array([np.inf, 0], np.float32)}, "not_finite"),
        ({**BASE, "b": np.array([1e6, 0], np.float32)}, "norm_too_large"),
    ],
)
def test_an_update_that_would_spoil_the_average_is_named(bad: Arrays, reason: str) -> None:
    found = aggregate.fault(bad, BASE)

    assert found is not None
    assert found[0] == reason


@given(st.integers(0, 2**32 - 1))
def test_an_ordinary_update_has_no_fault(seed: int) -> None:
    assert aggregate.fault(update(seed), BASE) is None


def opened(*participants: str, keys: Keys | None = None) -> OpenRound:
    told = RoundOpen(
        round="s1-r1",
        site="demo",
        model="m",
        base="sha256:" + "0" * 64,
        parameters_sha256=tensors.digest(BASE),
        participants=participants,
        epochs=1,
        batch_size=8,
        learning_rate=0.1,
        closes_at=CLOSES_AT,
    )
    return OpenRound(told, BASE, keys=keys)


def frame(sender: str, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "round": "s1-r1",
        "device": sender,
        "parameters_sha256": tensors.digest(BASE),
        "samples": 10,
        "loss_before": 1.0,
        "loss_after": 0.5,
        "seconds": 2.0,
    }
    return tensors.pack(UpdateHeader(**{**fields, **changes}), update(1))  # type: ignore[arg-type]


def reason(round_: OpenRound, device: str, payload: bytes, *, now_ms: int = 0) -> str:
    answer = round_.take(device, payload, now_ms=now_ms)
    return "nothing" if answer is None else answer.reason


def test_a_round_is_complete_when_every_participant_has_answered() -> None:
    current = opened("a", "b", "c")

    assert reason(current, "a", frame("a")) == ""
    assert reason(current, "b", b"x") == "malformed"
    refusal = messages.encode(Refusal(round="s1-r1", device="c", reason="no_data"))
    assert reason(current, "c", refusal) == "no_data"

    assert current.complete
    assert current.announcement.answered == ("a", "b", "c")
    assert current.accepted == 1
    np.testing.assert_allclose(current.result()["w"], BASE["w"] + update(1)["w"], atol=1e-6)


def test_a_device_is_heard_once_and_only_if_it_was_asked_and_in_time() -> None:
    current = opened("a", "b")

    assert reason(current, "z", frame("z")) == "not_participant"
    assert reason(current, "a", frame("a")) == ""
    assert reason(current, "a", frame("a")) == "nothing"
    assert reason(current, "b", frame("b"), now_ms=CLOSES_AT + 1) == "late"
    assert current.accepted == 1


def test_only_what_a_device_signed_is_its_answer() -> None:
    own, stranger = SigningKey.generate(), SigningKey.generate()
    known = {"a": [own.public], "b": [stranger.public]}
    current = opened("a", "b", keys=lambda site, device: known[device] if site == "demo" else [])
    good = signed_frame.sign(frame("a"), kind=signed_frame.UPDATE, key=own)

    for bad in (
        frame("a"),
        signed_frame.sign(frame("a"), kind=signed_frame.UPDATE, key=stranger),
        signed_frame.sign(frame("a"), kind="application/x", key=own),
        good[:-1],
        good[:40],
        b"",
    ):
        assert reason(current, "a", bad) == "nothing"
    assert reason(current, "a", good) == ""
    assert current.announcement.answered == ("a",)
    refusal = messages.encode(Refusal(round="s1-r1", device="b", reason="no_data"))
    signed = signed_frame.sign(refusal, kind=signed_frame.UPDATE, key=stranger)
    assert reason(current, "b", signed) == "no_data"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"round": "s1-r2"}, "wrong_round"),
        ({"device": "b"}, "wrong_device"),
        ({"parameters_sha256": "f" * 64}, "wrong_parameters"),
    ],
)
def test_an_update_for_something_else_is_not_counted(
    changes: dict[str, object], expected: str
) -> None:
    current = opened("a", "b")

    assert reason(current, "a", frame("a", **changes)) == expected
    assert current.accepted == 0


def test_a_frame_that_unfolds_to_more_than_the_model_is_refused() -> None:
    current = opened("a")
    header = UpdateHeader(
        round="s1-r1",
        device="a",
        parameters_sha256=tensors.digest(BASE),
        samples=1,
        loss_before=1.0,
        loss_after=1.0,
        seconds=1.0,
    )
    bomb = tensors.pack(header, {"w": np.zeros(4 << 20, np.float32)})

    assert reason(current, "a", bomb) == "malformed"
