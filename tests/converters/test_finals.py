"""The finals: what cannot be judged is taken out, and says why."""

from __future__ import annotations

import pytest

from edgekit.errors import BuildError, EdgekitError, EngineError
from edgekit_converters.artefact import Made
from edgekit_converters.finals import settle
from edgekit_converters.passes import Scheme, Step
from edgekit_converters.search import Trial


def trial(name: str, *, cost: float) -> Trial:
    step = Step(name=name, label=name, options={}, precision="int8")
    return Trial(scheme=Scheme(steps=(step,)), headroom=0.5, cost=cost)


@pytest.mark.parametrize("kind", [EngineError, BuildError])
def test_an_engine_or_a_simulator_that_gives_no_answers_ends_no_search(
    kind: type[EdgekitError],
) -> None:
    def judged(scheme: Scheme) -> Made:
        raise kind(f"{scheme.name} took longer than 600 s")

    placed = settle(
        [trial("first", cost=0.5), trial("second", cost=0.6)],
        most=3,
        has_room=lambda: True,
        retime=lambda _: {},
        judged=judged,
    )

    assert placed.rungs == ()
    assert [one.reasons for one in placed.history] == [
        ("on the report's samples: first took longer than 600 s",),
        ("on the report's samples: second took longer than 600 s",),
    ]
