"""The gate of a candidate, and the version it gets."""

from __future__ import annotations

import pytest

from edgekit.fleet import release
from edgekit.fleet.release import Measured


def mse(value: float) -> Measured:
    return Measured(name="mse", value=value, samples=300)


def top1(value: float, *, samples: int = 300) -> Measured:
    return Measured(name="top1", value=value, samples=samples)


@pytest.mark.parametrize(
    ("candidate", "base", "accepted"),
    [
        (top1(0.9), top1(0.8), True),
        (top1(0.8), top1(0.8), True),
        (top1(0.79), top1(0.8), False),
        (top1(0.9), top1(0.8, samples=20), False),
        (None, top1(0.8), False),
        (top1(0.9), None, False),
        (mse(0.1), mse(0.2), True),
        (mse(0.3), mse(0.2), False),
        (mse(0.1), top1(0.8), False),
        (
            Measured(name="agreement", value=1.0, samples=9),
            Measured(name="agreement", value=0.9, samples=9),
            False,
        ),
    ],
)
def test_only_what_is_measured_as_good_as_the_base_is_accepted(
    candidate: Measured | None, base: Measured | None, accepted: bool
) -> None:
    outcome, reason = release.judge(candidate, base)

    assert outcome is accepted
    assert reason


@pytest.mark.parametrize(
    ("published", "version"),
    [
        (["1.0.0"], "1.1.0"),
        (["1.9.3", "1.10.0", "0.99.0"], "1.11.0"),
        (["2.0.0-rc.1", "1.4.0"], "2.1.0"),
        (["1.0.0+build.7"], "1.1.0"),
    ],
)
def test_the_next_version_is_above_all_that_are_published(
    published: list[str], version: str
) -> None:
    assert release.next_version(published) == version
