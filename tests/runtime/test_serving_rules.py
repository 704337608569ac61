"""The rules of serving: who comes first, which variant answers, who makes room, who rests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import Overloaded
from edgekit_runtime.serving import breaker, budget, ladder
from edgekit_runtime.serving.breaker import Breaker
from edgekit_runtime.serving.budget import Holding
from edgekit_runtime.serving.cache import FIRST_PAUSE, WINDOW, Cache, pays
from edgekit_runtime.serving.job import Job, Outputs
from edgekit_runtime.serving.ladder import Due, Step
from edgekit_runtime.serving.plan import LOOP_LIMIT_US, Plan, decide
from edgekit_runtime.serving.queue import PATIENCE_NS, Queue, batch_length
from edgekit_runtime.serving.rung import Rung


class Asked(Job):
    """A job that keeps its answers."""

    def __init__(self, *, rows: int = 1, key: str = "", **options: Any) -> None:
        super().__init__({}, rows=rows, key=key, **options)
        self.answers: list[Outputs | Exception] = []

    def done(self, outcome: Outputs | Exception, rung: Rung | None) -> None:
        self.answers.append(outcome)


# Queue.


@given(
    jobs=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab")), min_size=1, max_size=12),
    max_rows=st.integers(1, 16),
)
def test_a_batch_is_the_longest_run_of_like_jobs_that_fits(
    jobs: list[tuple[int, str]], max_rows: int
) -> None:
    waiting: list[Job] = [Asked(rows=rows, key=key) for rows, key in jobs]

    length = batch_length(waiting, max_rows=max_rows)

    taken = jobs[:length]
    assert 1 <= length <= len(jobs)
    assert len({key for _, key in taken}) == 1
    if length > 1:
        assert sum(rows for rows, _ in taken) <= max_rows
        assert all(rows for rows, _ in taken)
    if length < len(jobs) and all(rows for rows, _ in jobs[: length + 1]):
        rows, key = jobs[length]
        assert key != jobs[0][1] or sum(r for r, _ in taken) + rows > max_rows


def _job(arrived: int, due: int | None, priority: int) -> Asked:
    job = Asked(priority=priority, deadline_ns=due)
    job.arrived_ns = arrived
    return job


_JOBS = st.tuples(
    st.integers(0, 10**9), st.none() | st.integers(0, 2 * 10**9), st.integers(0, 9)
).map(lambda facts: _job(*facts))


@given(st.lists(_JOBS, max_size=30))
def test_the_more_urgent_come_first_then_the_earlier_deadline_then_who_came_first(
    jobs: list[Asked],
) -> None:
    queue = Queue()
    for job in jobs:
        queue.push(job)

    def due(job: Job) -> int:
        return job.deadline_ns if job.deadline_ns is not None else job.arrived_ns + PATIENCE_NS

    expected = sorted(range(len(jobs)), key=lambda i: (jobs[i].rank, due(jobs[i]), i))
    assert list(queue) == [jobs[i] for i in expected]


@given(st.lists(_JOBS, max_size=20), _JOBS)
def test_what_stands_before_a_job_is_what_is_served_before_it(
    jobs: list[Asked], late: Asked
) -> None:
    queue = Queue()
    for job in jobs:
        queue.push(job)

    before = list(queue.before(late))
    queue.push(late)

    order = list(queue)
    assert order[: order.index(late)] == before


@given(
    jobs=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.booleans()), max_size=12),
    max_rows=st.integers(1, 8),
)
def test_what_is_taken_in_one_go_is_what_is_taken_step_by_step(
    jobs: list[tuple[int, str, bool]], max_rows: int
) -> None:
    quick, slow = Queue(), Queue()
    for rows, key, is_left in jobs:
        job = Asked(rows=rows, key=key)
        job.settled = is_left
        quick.push(job)
        slow.push(job)
    while True:
        slow.prune()
        first = slow.head(lambda _: True)
        expected = [] if first is None else slow.take(first, max_rows=max_rows)
        assert quick.take_next(max_rows=max_rows) == expected
        if not expected:
            break


def test_what_nobody_wants_any_more_is_forgotten() -> None:
    queue = Queue()
    jobs = [Asked() for _ in range(3)]
    for job in jobs:
        queue.push(job)
    jobs[1].abandon()

    queue.prune()

    assert list(queue) == [jobs[0], jobs[2]]


def test_only_the_first_outcome_of_a_job_counts() -> None:
    job = Asked()
    job.settle({}, None)
    job.settle(ValueError("late"), None)

    assert job.answers == [{}]


# Plan.


@given(single=st.floats(1, 10_000), per_row=st.floats(0, 2))
def test_a_plan_keeps_the_loop_free_and_batches_only_what_pays(
    single: float, per_row: float
) -> None:
    def cost(size: int) -> float:
        return single * (1 + per_row * (size - 1))

    plan = decide(cost, batches=True)

    assert (plan.place == "loop") == (single <= LOOP_LIMIT_US)
    assert plan.place != "loop" or cost(plan.max_batch) <= LOOP_LIMIT_US
    assert cost(plan.max_batch) / plan.max_batch <= single
    assert decide(cost, batches=False).max_batch == 1
    assert decide(cost, batches=True, workers="process").place == "process"


@given(
    costs=st.lists(st.floats(1, 1000), min_size=1, max_size=5),
    rows=st.integers(0, 100),
)
def test_a_run_costs_what_was_measured_or_what_lies_between(costs: list[float], rows: int) -> None:
    sizes = (1, 4, 8, 16, 32)[: len(costs)]
    plan = Plan(place="thread", max_batch=sizes[-1], sizes=sizes, costs_us=tuple(costs))

    us = plan.run_us(rows)

    if rows in sizes:
        assert us == pytest.approx(costs[sizes.index(rows)])
    elif rows < sizes[-1]:
        assert min(costs) - 1e-6 <= us <= max(costs) + 1e-6
    else:
        assert us == pytest.approx(costs[-1] * rows / sizes[-1])


# Ladder.

_STEP = st.tuples(st.integers(10, 1000), st.integers(0, 100), st.integers(1, 8))


def _step(fixed: int, per_row: int, max_batch: int) -> Step:
    return Step(lambda rows: float(fixed + per_row * rows), max_batch)


def _late(steps: Sequence[Step], waiting: Sequence[Due], rule: Any) -> tuple[set[int], list[int]]:
    """Serve everything by a rule: which requests are late, and which rung served each batch."""
    late: set[int] = set()
    rungs: list[int] = []
    now, start = 0.0, 0
    while start < len(waiting):
        left = [Due(due.rows, due.left_us - now) for due in waiting[start:]]
        position = rule(steps, left)
        rows, count = 0, 0
        while start + count < len(waiting):
            more = waiting[start + count].rows or 1
            if count and rows + more > steps[position].max_batch:
                break
            rows, count = rows + more, count + 1
        now += steps[position].run_us(rows)
        late |= {i for i in range(start, start + count) if waiting[i].left_us < now}
        rungs.append(position)
        start += count
    return late, rungs


@settings(max_examples=300)
@given(
    steps=st.lists(_STEP, min_size=1, max_size=4),
    waiting=st.lists(
        st.tuples(st.integers(0, 4), st.just(math.inf) | st.floats(0, 5000)),
        min_size=1,
        max_size=15,
    ),
)
def test_the_ladder_makes_nobody_late_whom_the_fastest_rung_would_have_served_in_time(
    steps: list[tuple[int, int, int]], waiting: list[tuple[int, float]]
) -> None:
    rungs = [_step(*facts) for facts in steps]
    due = [Due(rows, left) for rows, left in waiting]

    ours, _ = _late(rungs, due, ladder.choose)
    fastest, _ = _late(rungs, due, lambda steps, _: len(steps) - 1)

    assert ours <= fastest


def test_a_request_with_time_to_spare_gets_the_most_accurate_rung() -> None:
    steps = [_step(1000, 0, 1), _step(100, 0, 1)]

    assert ladder.choose(steps, [Due(1, 1500.0)]) == 0
    assert ladder.choose(steps, [Due(1, 900.0)]) == 1
    assert ladder.choose(steps, [Due(1, 1500.0), Due(1, 1050.0)]) == 1, "the second would be late"
    assert ladder.choose(steps, [Due(1, 1500.0), Due(1, 50.0)]) == 0, "the second is late anyway"


@given(st.lists(st.floats(1, 100), min_size=1, max_size=8))
def test_a_rung_is_worth_standing_on_if_all_more_accurate_ones_are_slower(
    costs: list[float],
) -> None:
    kept = ladder.worthwhile(costs)

    assert kept[0] == 0
    assert [costs[i] for i in kept] == sorted({costs[i] for i in kept}, reverse=True)
    assert costs[kept[-1]] == min(costs)


def test_confidence_is_the_least_sure_sample_of_a_classifier() -> None:
    sure = np.array([[0.9, 0.1], [0.4, 0.6]], np.float32)
    scores = np.array([[0.0, 0.0]], np.float32)

    assert ladder.confidence({"y": sure}) == pytest.approx(0.6)
    assert ladder.confidence({"y": scores}) == pytest.approx(0.5)
    assert ladder.confidence({"boxes": np.zeros((1, 3, 4), np.float32)}) == 1.0


# Breaker.


@given(st.lists(st.floats(0.001, 200), max_size=30))
def test_a_breaker_waits_longer_and_longer_and_never_for_ever(gaps: list[float]) -> None:
    state, now, pauses = Breaker(), 0.0, []
    for gap in gaps:
        now += gap
        state = state.after_failure(now)
        pauses.append(state.retry_at - now)
        now = max(now, state.retry_at)
        assert not state.is_open(now)

    assert all(0 <= pause <= breaker.LONGEST_PAUSE_S for pause in pauses)
    assert all(pause == 0 for pause in pauses[: breaker.TOLERATED])


def test_failures_in_a_row_open_the_circuit_and_a_quiet_time_closes_it() -> None:
    state, pauses = Breaker(), []
    now = 100.0
    for _ in range(5):
        state = state.after_failure(now)
        pauses.append(state.retry_at - now)
        now = state.retry_at + 0.1
    assert pauses == pytest.approx([0, 0, 1, 2, 4])

    later = state.after_failure(now + 2 * breaker.WINDOW_S)
    assert not later.is_open(now + 2 * breaker.WINDOW_S)


# Budget.

_HOLDINGS = st.lists(
    st.tuples(st.integers(0, 100), st.floats(0, 100), st.booleans(), st.booleans()), max_size=10
)


@given(_HOLDINGS, st.integers(0, 200), st.integers(1, 500))
def test_room_is_made_by_what_is_idle_and_only_as_much_as_needed(
    facts: list[tuple[int, float, bool, bool]], needed: int, most: int
) -> None:
    holdings = [Holding(i, *rest) for i, rest in enumerate(facts)]
    held = sum(holding.size_bytes for holding in holdings)
    idle = sum(holding.size_bytes for holding in holdings if not holding.is_busy)
    try:
        closing = budget.make_room(holdings, needed_bytes=needed, budget_bytes=most, what="a model")
    except Overloaded:
        assert held - idle + needed > most
        return
    freed = [holdings[key] for key in closing]
    assert held - sum(holding.size_bytes for holding in freed) + needed <= most
    assert not any(holding.is_busy for holding in freed)
    order = [(holding.is_default, holding.used_at) for holding in freed]
    assert order == sorted(order)
    if freed:
        without_last = sum(holding.size_bytes for holding in freed[:-1])
        assert held - without_last + needed > most


def test_without_a_budget_nothing_is_closed() -> None:
    holding = Holding("a", 1 << 30, 0.0, False, False)
    assert budget.make_room([holding], needed_bytes=1, budget_bytes=0, what="a model") == []


# Cache.


def _outputs(value: float, size: int = 4) -> Outputs:
    return {"y": np.full((1, size), value, np.float32)}


RUNG: Any = None


def test_a_cache_gives_back_what_was_answered_and_nothing_else() -> None:
    cache = Cache(budget_bytes=1 << 20)
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    key = cache.key(inputs, None)
    assert key is not None
    cache.put(key, _outputs(1), RUNG)

    again = cache.key({"x": inputs["x"].copy()}, None)
    assert again is not None
    found = cache.get(again, run_ns=1e9)
    assert found is not None
    np.testing.assert_array_equal(found.outputs["y"], _outputs(1)["y"])
    others: list[tuple[dict[str, Any], str | None]] = [
        ({"x": inputs["x"] + 1}, None),
        ({"x": inputs["x"].reshape(3, 2)}, None),
        ({"x": inputs["x"].view(np.int32)}, None),
        (inputs, "float"),
    ]
    for arrays, pin in others:
        other = cache.key(arrays, pin)
        assert other is not None
        assert cache.get(other, run_ns=1e9) is None
    assert (cache.hits, cache.misses) == (1, 4)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), max_size=60))
def test_a_cache_never_holds_more_than_its_budget(puts: list[tuple[int, int]]) -> None:
    cache = Cache(budget_bytes=4000)
    for value, size in puts:
        cache.put((value,), _outputs(value, size), RUNG)
        assert cache.size_bytes <= 4000


def test_a_cache_that_does_not_pay_turns_itself_off_and_tries_again_later() -> None:
    cache = Cache(budget_bytes=1 << 20)
    for step in range(WINDOW):
        key = cache.key({"x": np.array([step])}, None)
        assert key is not None
        cache.get(key, run_ns=10)
    assert not cache.is_on
    assert cache.size_bytes == 0
    for _ in range(FIRST_PAUSE):
        assert cache.key({"x": np.array([1])}, None) is None
    assert cache.is_on


@given(
    hits=st.integers(0, 100),
    misses=st.integers(0, 100),
    run=st.floats(0, 1e6),
    look=st.floats(1, 1e6),
)
def test_a_cache_pays_where_it_saves_more_than_it_costs(
    hits: int, misses: int, run: float, look: float
) -> None:
    lookups = hits + misses
    saved = hits * run - lookups * look
    assert pays(hits=hits, lookups=lookups, run_ns=run, lookup_ns=look) == (saved > 0)


def test_a_deadline_settles_a_job_that_nobody_ran() -> None:
    late: list[Job] = []

    async def wait() -> Asked:
        job = Asked()
        job.deadline_ns = job.arrived_ns + 1_000_000
        job.limit(asyncio.get_running_loop(), late.append)
        while not job.answers:
            await asyncio.sleep(0.001)
        return job

    job = asyncio.run(wait())
    (answer,) = job.answers
    assert late == [job]
    assert "timeout of 1000 us" in str(answer)
