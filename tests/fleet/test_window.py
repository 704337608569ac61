"""The rule of acknowledgements, for every order in which messages may come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.window import MAX_AHEAD, Window

arrivals = st.lists(st.integers(1, 40), min_size=1, max_size=80)


@given(arrivals)
def test_an_acknowledgement_never_passes_a_gap(seqs: list[int]) -> None:
    window, stored = Window(), set[int]()
    for seq in seqs:
        if window.take(seq, floor=1) == "new":
            stored.add(seq)
        assert set(range(1, window.acked + 1)) <= stored
        assert window.acked + 1 not in stored


@given(arrivals)
def test_every_message_is_new_exactly_once(seqs: list[int]) -> None:
    window = Window()
    new = [seq for seq in seqs if window.take(seq, floor=1) == "new"]

    assert sorted(new) == sorted(set(seqs))


@given(st.permutations(range(1, 30)))
def test_when_all_have_come_all_are_acknowledged(seqs: list[int]) -> None:
    window = Window()
    for seq in seqs:
        window.take(seq, floor=1)

    assert window.acked == 29


@given(arrivals, st.integers(0, 79))
def test_a_window_read_from_the_store_goes_on_as_if_nothing_had_happened(
    seqs: list[int], cut: int
) -> None:
    whole, first = Window(), Window()
    stored = set[int]()
    for seq in seqs[:cut]:
        if first.take(seq, floor=1) == "new":
            stored.add(seq)
    again = Window(first.acked, {seq for seq in stored if seq > first.acked})
    for seq in seqs[:cut]:
        whole.take(seq, floor=1)

    assert [again.take(seq, floor=1) for seq in seqs[cut:]] == [
        whole.take(seq, floor=1) for seq in seqs[cut:]
    ]


def test_what_the_device_has_given_up_makes_no_gap() -> None:
    window = Window()
    window.take(3, floor=1)
    assert window.acked == 0

    window.take(7, floor=6)
    assert window.acked == 5
    window.take(6, floor=6)

    assert window.acked == 7
    assert window.take(4, floor=6) == "duplicate"


def test_a_message_far_ahead_is_not_stored() -> None:
    window = Window()

    assert window.take(MAX_AHEAD + 1, floor=1) == "too_far"
    assert window.take(MAX_AHEAD, floor=1) == "new"
