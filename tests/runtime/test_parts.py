"""Parts: what is left out of a message can always be found, or is known to be missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.parts import AGAIN_S, Parts

steps = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, AGAIN_S), st.booleans()),
    max_size=30,
)


@given(steps)
def test_a_message_that_came_tells_the_part_as_it_is_or_names_one_that_did(
    drawn: list[tuple[int, int, float, bool]],
) -> None:
    parts, now, came = Parts(), 0.0, dict[int, tuple[int, int]]()
    for seq, (about, slots, later, is_lost) in enumerate(drawn, start=1):
        now += later
        told = parts.tell({"about": about, "slots": slots}, seq=seq, now_s=now)
        if not is_lost:
            came[seq] = (about, slots)
        for place, part in enumerate(("about", "slots")):
            if told[part] in came:  # type: ignore[index]
                assert came[told[part]][place] == (about, slots)[place]  # type: ignore[index]


def test_what_does_not_change_is_told_again_after_an_hour() -> None:
    parts = Parts()
    told = [
        parts.tell({"about": "same"}, seq=seq, now_s=seq * AGAIN_S / 2)["about"]
        for seq in range(1, 7)
    ]

    assert told == [1, 1, 3, 3, 5, 5]


def test_what_was_forgotten_is_told_again() -> None:
    parts = Parts()
    parts.tell({"drift": 1}, seq=1, now_s=0)
    parts.forget()

    assert parts.tell({"drift": 1}, seq=2, now_s=1) == {"drift": 2}
