"""Statistics: exact counts, whatever the order and the thread, and their sums."""

from __future__ import annotations

import threading
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.messages import LATENCY_EDGES_US
from edgekit_runtime.serving.stats import EMPTY, Snapshot, Stages, Stats, figures, merged

NS = st.integers(0, 10**12)


def answered(stats: Stats, *took_ns: int, waited_ns: int = 0) -> None:
    stats.answered(
        [10**15 - took for took in took_ns],
        taken_ns=10**15 - max(took_ns, default=0) + waited_ns,
        done_ns=10**15,
        now_ms=7,
    )


@given(st.lists(NS, max_size=3000))
def test_each_latency_is_in_its_bucket_however_many_there_are(took_ns: list[int]) -> None:
    stats = Stats()
    for start in range(0, len(took_ns), 7):
        answered(stats, *took_ns[start : start + 7])
    found = stats.snapshot()

    expected = [0] * (len(LATENCY_EDGES_US) + 1)
    for took in took_ns:
        expected[bisect_left([edge * 1000 for edge in LATENCY_EDGES_US], took)] += 1
    assert list(found.latency) == expected
    assert found.succeeded == len(took_ns)
    assert found.succeeded_ns == sum(took_ns)


def test_a_latency_on_an_edge_is_below_it_and_one_above_all_edges_is_counted() -> None:
    stats = Stats()
    answered(stats, 16_000, 16_001, (LATENCY_EDGES_US[-1] + 1) * 1000)

    assert stats.snapshot().latency[:2] == (1, 1)
    assert stats.snapshot().latency[-1] == 1


def test_time_in_the_queue_is_what_was_not_spent_running() -> None:
    stats = Stats()
    answered(stats, 500, waited_ns=200)
    answered(stats, 300, waited_ns=0)

    assert stats.snapshot().queue_ns == 200


def test_answers_of_one_thread_and_snapshots_of_another_lose_nothing() -> None:
    stats, seen = Stats(), []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(stats.snapshot().succeeded)

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(5000):
        answered(stats, 1000, 2000, 3000)
    done.set()
    thread.join()

    assert stats.snapshot().succeeded == 15_000
    assert stats.snapshot().succeeded_ns == 5000 * 6000
    assert seen == sorted(seen)


@given(st.lists(st.integers(1, 10**6), max_size=200))
def test_batch_sizes_are_bounded_and_samples_exact(rows: list[int]) -> None:
    stats = Stats()
    for count in rows:
        stats.batch(count, Stages(1, 2, 3))
    found = stats.snapshot()

    assert found.inferences == sum(rows)
    assert found.executions == len(rows)
    assert found.run_ns == 2 * len(rows)
    assert len(found.batches) <= 128 + 20
    assert all(size in rows for size in found.batches if size <= 128)


def test_refusals_and_errors_are_kept_apart_by_their_reason() -> None:
    stats = Stats()
    stats.rejected()
    stats.rejected("deadline")
    stats.failed("lost", took_ns=5)
    stats.cancelled()
    found = stats.snapshot()

    assert found.refusals == {"full": 1, "deadline": 1}
    assert found.rejected == 2
    assert (found.errors, found.failed, found.failed_ns) == ({"lost": 1}, 1, 5)
    assert found.cancelled == 1


def some(seed: int) -> Snapshot:
    stats = Stats()
    for count in range(seed % 5):
        answered(stats, 1000 * (seed + count), waited_ns=seed)
        stats.batch(1 + (seed + count) % 3, Stages(seed, 2, count))
    if seed % 2:
        stats.failed("engine", took_ns=seed)
        stats.rejected("memory")
        stats.cancelled()
    return stats.snapshot()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_sums_do_not_depend_on_their_order(seeds: list[int]) -> None:
    parts = [some(seed) for seed in seeds]
    whole = merged(parts)

    assert whole == merged(parts[::-1])
    assert whole == merged([merged(parts[:1]), merged(parts[1:])])
    assert merged([whole, EMPTY]) == whole
    assert whole.succeeded == sum(part.succeeded for part in parts) == sum(whole.latency)
    assert whole.executions == sum(count for count, *_ in whole.batches.values())


def test_figures_are_what_happened_in_between() -> None:
    stats = Stats()
    answered(stats, 20_000)
    before = stats.snapshot()
    answered(stats, 20_000, 30_000)
    stats.failed("request")
    stats.cancelled()

    delta = figures(stats.snapshot(), before, labels=("tiny", "1.0.0", "float"))

    assert (delta.requests, delta.errors, delta.cancelled) == (3, 1, 1)
    assert sum(delta.latency_us.values()) == 2
    assert (delta.model, delta.version, delta.variant) == ("tiny", "1.0.0", "float")


@pytest.mark.parametrize("field", Snapshot.__struct_fields__)
def test_an_empty_snapshot_has_nothing(field: str) -> None:
    value = getattr(EMPTY, field)
    assert not (any(value) if isinstance(value, tuple) else value)
