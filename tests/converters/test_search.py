"""Rules of the search, played against invented models whose every answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edgekit_converters.blocks import Block
from edgekit_converters.passes import KEEP, PASSES, Scheme, Step
from edgekit_converters.search import (
    ALIKE,
    CLEARLY_SMALLER,
    NEAR_TIE,
    Space,
    Trial,
    choose,
    ladder,
    pareto,
    propose,
)

STATIC = PASSES.get("static-int8")
DYNAMIC = PASSES.get("dynamic-int8")
MINMAX = STATIC.step({})
ENTROPY = STATIC.step({"calibrator": "entropy"})
PER_PRODUCT = DYNAMIC.step({})
EQUALISE = Step(name="equalise", label="equalise", options={})
PRUNES = tuple(Step(name="prune", label=f"prune/{n}", options={"share": n / 10}) for n in (1, 2, 3))
BLOCKS = tuple(Block(nodes=(f"a{n}", f"b{n}"), share=0.125) for n in range(8))

World = Callable[[Scheme], tuple[float, float]]
"""Headroom and cost of a scheme."""


def play(space: Space, world: World, *, most: int = 200) -> list[Trial]:
    """Search to the end; every proposal must be new."""
    history: list[Trial] = []
    while (proposal := propose(space, history)) is not None:
        assert (proposal.scheme.name, proposal.probe) not in {
            (trial.scheme.name, trial.probe) for trial in history
        }
        assert len(history) < most
        headroom, cost = world(proposal.scheme)
        lost = ("agreement too low",) if headroom < 0 else ()
        slow = ("slower than float",) if cost > 1 and not proposal.probe else ()
        history.append(
            Trial(
                scheme=proposal.scheme,
                headroom=headroom,
                noise=1.0 - headroom,
                cost=None if proposal.probe else cost,
                probe=proposal.probe,
                reasons=(*lost, *slow),
            )
        )
    return history


def chosen(history: list[Trial]) -> Scheme | None:
    position = choose(history)
    return None if position is None else history[position].scheme


def test_a_first_guess_within_the_budget_ends_the_search() -> None:
    history = play(
        Space(families=((MINMAX, ENTROPY), (PER_PRODUCT,)), blocks=BLOCKS),
        lambda scheme: (0.9, 0.5) if scheme.steps == (MINMAX,) else (0.9, 2.0),
    )

    assert chosen(history) == Scheme(steps=(MINMAX,))
    assert [trial.scheme.steps for trial in history] == [(MINMAX,), (PER_PRODUCT,)]


def test_where_the_first_guess_loses_too_much_other_calibrators_are_tried() -> None:
    history = play(
        Space(families=((MINMAX, ENTROPY),)),
        lambda scheme: (0.5 if scheme.steps == (ENTROPY,) else -1.0, 0.5),
    )

    assert chosen(history) == Scheme(steps=(ENTROPY,))


def test_a_family_that_is_slower_than_float_is_not_looked_into() -> None:
    history = play(Space(families=((MINMAX, ENTROPY),), blocks=BLOCKS), lambda _: (-1.0, 1.5))

    assert len(history) == 1
    assert chosen(history) is None


def test_a_preparation_is_tried_where_calibration_alone_is_not_enough() -> None:
    history = play(
        Space(families=((MINMAX,),), preparations=((EQUALISE,),)),
        lambda scheme: (0.5 if EQUALISE in scheme.steps else -1.0, 0.5),
    )

    assert chosen(history) == Scheme(steps=(EQUALISE, MINMAX))


@given(
    harms=st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.875, 2.0]), min_size=8, max_size=8),
)
def test_only_blocks_that_hurt_stay_in_float(harms: list[float]) -> None:
    harm = {block.nodes[0]: lost for block, lost in zip(BLOCKS, harms, strict=True)}

    def world(scheme: Scheme) -> tuple[float, float]:
        kept = kept_nodes(scheme)
        lost = sum(lost for node, lost in harm.items() if node not in kept)
        share = sum(block.share for block in BLOCKS if block.nodes[0] in kept)
        return 1.0 - lost, 0.5 + 0.5 * share

    history = play(Space(families=((MINMAX,),), blocks=BLOCKS), world)

    found = chosen(history)
    if all(lost > 1.0 for lost in harms):
        return
    assert found is not None
    assert world(found)[0] >= 0
    kept = [lost for node, lost in harm.items() if node in kept_nodes(found)]
    left = [lost for node, lost in harm.items() if node not in kept_nodes(found)]
    if kept and left:
        assert min(kept) >= max(left)
    # One block less in float would have been too few.
    if kept:
        assert sum(left) + min(kept) > 1.0


@given(harm=st.floats(6.0, 60.0))
def test_a_model_that_has_lost_all_sense_is_looked_into_block_by_block(harm: float) -> None:
    def world(scheme: Scheme) -> tuple[float, float]:
        kept = kept_nodes(scheme)
        lost = sum(harm for node in ("a2", "a5") if node not in kept)
        return 1.0 - lost, 0.5 + 0.06 * len([n for n in kept if n[0] == "a"])

    found = chosen(play(Space(families=((MINMAX,),), blocks=BLOCKS), world))

    assert found is not None
    assert kept_nodes(found) == {"a2", "b2", "a5", "b5"}


def test_what_is_left_of_the_budget_is_spent_on_pruning_until_it_is_used_up() -> None:
    def world(scheme: Scheme) -> tuple[float, float]:
        pruned = sum(float(str(s.options["share"])) for s in scheme.steps if s.name == "prune")
        return 0.9 - 4 * pruned, 0.5 * (1 - pruned)

    history = play(Space(families=((MINMAX,),), rewrites=(PRUNES,)), world)

    assert chosen(history) == Scheme(steps=(PRUNES[1], MINMAX))
    assert len(history) == 4


def test_without_a_family_rewrites_are_tried_alone() -> None:
    history = play(Space(rewrites=(PRUNES[:1],)), lambda scheme: (0.5, 0.9 if scheme.steps else 1))

    assert chosen(history) == Scheme(steps=PRUNES[:1])


def test_a_recipes_own_steps_come_first_in_every_scheme() -> None:
    history = play(
        Space(prefix=(EQUALISE,), families=((MINMAX, ENTROPY),), rewrites=(PRUNES,)),
        lambda _: (-0.5, 0.5),
    )

    assert all(trial.scheme.steps[0] == EQUALISE for trial in history)


def test_what_a_recipe_asks_for_is_made_also_where_nothing_changes_the_precision() -> None:
    history = play(Space(prefix=(PRUNES[0],)), lambda scheme: (0.5, 0.9 if scheme.steps else 1))

    assert chosen(history) == Scheme(steps=PRUNES[:1])
    assert len(history) == 1


def test_a_mixture_that_is_right_but_slower_than_float_gets_fewer_blocks_in_float() -> None:
    def world(scheme: Scheme) -> tuple[float, float]:
        kept = {name for name in kept_nodes(scheme) if name[0] == "a"}
        return (0.5 if "a1" in kept else -1.0), 0.5 + 0.2 * len(kept)

    history = play(Space(families=((MINMAX,),), blocks=BLOCKS), world)

    found = chosen(history)
    assert found is not None
    assert kept_nodes(found) == {"a1", "b1"}


def test_blocks_are_not_looked_into_where_answers_are_close_and_something_else_forbids() -> None:
    space = Space(families=((MINMAX, ENTROPY),), preparations=((EQUALISE,),), blocks=BLOCKS)
    too_large = Trial(
        scheme=Scheme(steps=(MINMAX,)), headroom=0.5, cost=0.5, reasons=("9 MB, at most 8 MB",)
    )

    assert propose(space, [too_large]) is None


costs = st.floats(0.1, 1.0)
trials = st.builds(
    Trial,
    scheme=st.integers(0, 10**6).map(
        lambda n: Scheme(steps=(Step(name="x", label=f"x/{n}", options={}),))
    ),
    headroom=st.floats(0, 1),
    doubt=st.floats(0, 1),
    cost=costs,
    size_bytes=st.integers(1, 100) | st.integers(50, 60),
    reasons=st.sampled_from([(), (), ("refused",)]),
)
histories = st.lists(trials, max_size=8, unique_by=lambda trial: trial.scheme.name)


@given(histories)
def test_what_is_chosen_was_accepted_and_nothing_accepted_is_clearly_faster(
    history: list[Trial],
) -> None:
    position = choose(history)

    accepted = [trial.cost or 0.0 for trial in history if trial.accepted]
    if position is None:
        assert not accepted
    else:
        assert history[position].accepted
        assert (history[position].cost or 0.0) <= min(accepted) * (1 + NEAR_TIE)


def near_ties(history: list[Trial]) -> list[Trial]:
    """What is accepted and nearly as fast as the fastest of it."""
    accepted = [trial for trial in history if trial.accepted]
    fastest = min((trial.cost or 0.0 for trial in accepted), default=0.0)
    return [trial for trial in accepted if (trial.cost or 0.0) <= fastest * (1 + NEAR_TIE)]


@given(histories)
def test_for_a_smaller_file_no_more_is_given_up_than_the_data_leave_open(
    history: list[Trial],
) -> None:
    position = choose(history)
    if position is None:
        return

    found = history[position]
    closest = max(trial.headroom or 0.0 for trial in near_ties(history))
    assert closest - (found.headroom or 0.0) <= min(found.doubt, ALIKE) + 1e-3


@given(histories)
def test_nothing_as_fast_and_surely_as_close_is_clearly_smaller_than_the_choice(
    history: list[Trial],
) -> None:
    position = choose(history)
    if position is None:
        return

    found = history[position]
    best = [t for t in near_ties(history) if (t.headroom or 0.0) >= (found.headroom or 0.0)]
    assert all(t.size_bytes >= found.size_bytes * (1 - CLEARLY_SMALLER) for t in best)


@given(histories)
def test_where_nothing_is_left_open_the_closest_is_chosen_whatever_its_size(
    history: list[Trial],
) -> None:
    sure = [msgspec.structs.replace(trial, doubt=0.0) for trial in history]
    position = choose(sure)
    if position is None:
        return

    closest = max(trial.headroom or 0.0 for trial in near_ties(sure))
    assert (sure[position].headroom or 0.0) >= closest - 1e-3


def test_a_third_of_the_file_is_worth_a_difference_that_the_data_do_not_tell() -> None:
    """A text transformer: with its table of embeddings in 8 bits, and with the table in float."""
    table_in_float = Trial(
        scheme=Scheme(steps=(PER_PRODUCT,)), headroom=0.97, doubt=0.6, cost=0.492, size_bytes=53
    )
    everything = msgspec.structs.replace(
        table_in_float,
        scheme=Scheme(steps=(DYNAMIC.step({"operators": ("MatMul", "Gemm", "Gather")}),)),
        headroom=0.958,
        cost=0.477,
        size_bytes=17,
    )

    assert choose([table_in_float, everything]) == 1
    assert choose([table_in_float, msgspec.structs.replace(everything, size_bytes=41)]) == 0
    assert choose([table_in_float, msgspec.structs.replace(everything, headroom=0.8)]) == 0
    assert choose([table_in_float, msgspec.structs.replace(everything, doubt=0.0)]) == 0


@given(histories, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_trials(history: list[Trial], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(history)
    random.shuffle(shuffled)

    assert chosen(history) == chosen(shuffled)


@given(histories)
def test_a_noise_of_two_per_cent_in_the_timings_of_near_ties_changes_nothing(
    history: list[Trial],
) -> None:
    level = [msgspec.structs.replace(trial, cost=0.5) for trial in history]
    noisy = [
        msgspec.structs.replace(trial, cost=0.5 * (1 + 0.02 * (-1) ** i))
        for i, trial in enumerate(level)
    ]

    assert chosen(level) == chosen(noisy)


@given(histories, st.integers(1, 4))
def test_a_ladder_gets_slower_and_closer_from_rung_to_rung(history: list[Trial], most: int) -> None:
    rungs = [history[i] for i in ladder(history, most=most)]

    assert len(rungs) <= most
    for fast, slow in itertools.pairwise(rungs):
        assert (slow.cost or 0.0) > (fast.cost or 0.0)
        assert (slow.headroom or 0.0) >= (fast.headroom or 0.0)


@given(st.lists(st.tuples(costs, costs), max_size=12))
def test_the_front_holds_exactly_what_nothing_else_beats(points: list[tuple[float, float]]) -> None:
    for point, best in zip(points, pareto(points), strict=True):
        beaten = any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points)
        assert best is not beaten


def kept_nodes(scheme: Scheme) -> set[str]:
    kept = scheme.steps[-1].options.get(KEEP, ())
    assert isinstance(kept, tuple)
    return set(kept)
