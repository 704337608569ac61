"""What a board can carry: arrivals, load, judgement, search, and what ran out."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import ServingError, UsageError
from edgekit.manifest import TensorSpec
from edgekit_runtime.capacity import arrivals, load, resources, slo, wire
from edgekit_runtime.capacity.generators import Generators, Load
from edgekit_runtime.capacity.resources import Usage
from edgekit_runtime.capacity.runs import reasons_void
from edgekit_runtime.capacity.search import Answer, Rule, Trial, Try
from edgekit_runtime.capacity.slo import Objective
from edgekit_runtime.serving import v2

P99 = Objective("p99", 0.99, 50_000_000)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
FULL = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
ASK = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


# The SLO.


@pytest.mark.parametrize(
    ("text", "limit_ns"),
    [("p99=50ms", 50_000_000), ("p50=800us", 800_000), ("p99.9=.5s", 500_000_000)],
)
def test_an_slo_is_a_percentile_and_a_time(text: str, limit_ns: int) -> None:
    (objective,) = slo.parse([text])

    assert objective.limit_ns == limit_ns
    assert slo.parse([str(objective)]) == (objective,)


def test_several_objectives_come_in_one_text_or_in_more() -> None:
    assert slo.parse(["p50=1ms,p99=2ms"]) == slo.parse(["p50=1ms", " p99=2ms"])


@pytest.mark.parametrize(
    "text", ["", "p99", "p99=5", "p98=5ms", "p99=ms", "p99=-1ms", "99=5ms", "p99=5min", "p99=0ms"]
)
def test_an_slo_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="--slo") as caught:
        slo.parse([text])

    assert "p99=50ms" in (caught.value.hint or "")


def test_a_percentile_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="p99 twice"):
        slo.parse(["p99=1ms,p99=2ms"])


@given(st.lists(st.integers(1, 100_000_000), max_size=400), st.integers(0, 20))
def test_a_request_that_failed_is_late(latencies: list[int], failed: int) -> None:
    found = slo.judge(P99, np.array(latencies, dtype=np.int64), failed=failed)

    late = sum(latency > P99.limit_ns for latency in latencies) + failed
    total = len(latencies) + failed
    assert found.met == (total > 0 and 100 * late <= total)
    assert found.late_share <= found.late_share_upper <= 1


@given(st.integers(0, 50), st.integers(51, 5000))
def test_more_requests_narrow_the_bound(late: int, total: int) -> None:
    assert slo.upper_bound(late, total) > slo.upper_bound(2 * late, 2 * total) >= late / total


# The search.


def waits(rate: float, *, count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Times in a queue with Poisson arrivals and a service of 1 (Lindley's recursion, unrolled)."""
    excess = np.cumsum(1 - random.exponential(1 / rate, count))
    before = np.concatenate([[0.0], excess[:-1]])
    return np.asarray(before - np.minimum.accumulate(np.minimum(before, 0)) + 1)


def highest_rate(limit: float, quantile: float) -> float:
    """The rate at which that share of an M/D/1 queue's requests is within `limit`, exactly.

    Source: A. K. Erlang, 1909; the waiting time distribution as a finite sum.
    """

    def share(rate: float) -> float:
        terms = (
            (-rate * (limit - 1 - k)) ** k / math.factorial(k) * math.exp(rate * (limit - 1 - k))
            for k in range(int(limit - 1) + 1)
        )
        return (1 - rate) * math.fsum(terms)

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= quantile else (low, middle)
    return low


def searched(rule: Rule, meets: Callable[[float], bool], *, most: int = 60) -> list[Trial]:
    trials: list[Trial] = []
    while isinstance(step := rule.next(trials), Try):
        trials.append(Trial(step.load, meets(step.load)))
        assert len(trials) < most, "the search does not end"
    return trials


# The runs are drawn, so that now and then one strays: the same draws each time.
@settings(max_examples=25, derandomize=True)
@given(st.sampled_from([2.0, 3.0, 5.0, 8.0]), st.floats(0.05, 1.4), st.integers(0, 1000))
def test_the_search_finds_the_limit_of_a_queue_that_is_known_exactly(
    limit: float, start: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rule = Rule(start=start, step=0.005, resolution=0.02)

    def meets(rate: float) -> bool:
        return bool(np.mean(waits(rate, count=30_000, random=random) > limit) <= 0.01)

    answer = rule.next(searched(rule, meets))

    assert isinstance(answer, Answer)
    assert answer.confirmed
    assert answer.load == pytest.approx(highest_rate(limit, 0.99), rel=0.06, abs=0.01)


@given(st.integers(1, 500), st.integers(0, 400), st.integers(0, 5))
def test_one_spoilt_run_does_not_change_what_is_found(
    start: int, capacity: int, spoilt: int
) -> None:
    rule = Rule(start=start, step=1.0, resolution=0.0)
    count = 0

    def meets(streams: float) -> bool:
        nonlocal count
        count += 1
        return streams <= capacity and count != spoilt

    answer = rule.next(searched(rule, meets))

    assert answer == Answer(load=capacity, above=capacity + 1, confirmed=True)


@given(st.data())
def test_the_search_ends_whatever_the_machine_does(data: st.DataObject) -> None:
    rule = Rule(start=data.draw(st.floats(1, 1000)), step=1.0)
    trials = searched(rule, lambda _: data.draw(st.booleans()), most=400)

    assert all(trial.load >= 1 and trial.load == int(trial.load) for trial in trials)


def test_a_search_cut_short_says_what_it_has_and_that_it_is_not_confirmed() -> None:
    rule = Rule(start=10, step=1.0)

    assert rule.best([Trial(10, True)]) == Answer(load=10, above=None, confirmed=False)
    assert rule.best([Trial(10, False)]) == Answer(load=0, above=10, confirmed=False)


# Arrivals.


def test_poisson_arrivals_come_as_often_as_asked_and_without_memory() -> None:
    due = arrivals.poisson(1000, 50, random=np.random.default_rng(1))
    gaps_s = np.diff(due) / 1e9

    assert len(due) == pytest.approx(50_000, rel=0.02)
    assert gaps_s.min() >= 0
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)


@given(st.integers(1, 40), st.sampled_from([1.0, 7.5, 30.0]), st.booleans())
def test_streams_keep_their_beat(streams: int, rate: float, aligned: bool) -> None:
    due = arrivals.periodic(streams, rate, 4.0, random=np.random.default_rng(0), aligned=aligned)

    assert list(due) == sorted(due)
    assert len(due) == pytest.approx(streams * rate * 4, abs=streams)
    if aligned:
        assert len(set(due.tolist())) == math.ceil(rate * 4)


# The load generator.


class Stub(threading.Thread):
    """A real HTTP server on loopback that answers each request as it is told to."""

    def __init__(self, answer: Callable[[int], bytes | None]) -> None:
        super().__init__(daemon=True)
        self._answer = answer
        self._lock = threading.Lock()
        self._count = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def close(self) -> None:
        # A thread in accept() is woken by this, and not by close alone.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            received = b""
            while chunk := _received(sock):
                received += chunk
                while b"\r\n\r\n" in received:
                    head, _, received = received.partition(b"\r\n\r\n")
                    length = int(head.split(b"Content-Length: ")[1])
                    while len(received) < length:
                        received += _received(sock)
                    received = received[length:]
                    with self._lock:
                        reply = self._answer(self._count)
                        self._count += 1
                    if reply is None:
                        return
                    sock.sendall(reply)


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20)
    except ConnectionError:
        return b""


@contextmanager
def stub(answer: Callable[[int], bytes | None]) -> Iterator[str]:
    server = Stub(answer)
    server.start()
    try:
        yield server.address
    finally:
        server.close()
        server.join()


def driven(
    address: str, folder: Path, due_ms: list[int], *, message: bytes = ASK, connections: int = 4
) -> load.Sent:
    """An open loop with these due times."""
    (folder / "message").write_bytes(message)
    (np.array(due_ms, dtype=np.int64) * 1_000_000).tofile(folder / "due")
    return load.run(
        load.Task(
            address=address,
            messages=(str(folder / "message"),),
            connections=connections,
            duration_s=0,
            due=str(folder / "due"),
            patience_s=5.0,
        )
    )


def latencies_ms(sent: load.Sent) -> NDArray[np.float64]:
    return np.frombuffer(sent.latencies_ns, dtype=np.int64) / 1e6


def test_who_would_have_come_during_a_stall_is_counted_as_late(tmp_path: Path) -> None:
    """A server that stalls once for 0.4 s delays everyone who was due then, not one request."""

    def answer(count: int) -> bytes:
        if count == 10:
            time.sleep(0.4)
        return OK

    with stub(answer) as address:
        sent = driven(address, tmp_path, list(range(0, 400, 4)), connections=1)

    assert len(latencies_ms(sent)) == 100
    assert np.count_nonzero(latencies_ms(sent) > 100) > 50
    assert sent.starved > 50


def test_answers_that_are_no_outputs_are_told_by_status(tmp_path: Path) -> None:
    with stub(lambda count: (OK, FULL, None)[count % 3]) as address:
        sent = driven(address, tmp_path, list(range(0, 90, 3)))

    assert len(latencies_ms(sent)) == 10
    assert sent.statuses == {0: 10, 429: 10}
    assert sent.unanswered == 0


def test_large_requests_and_answers_are_sent_and_received_in_pieces(tmp_path: Path) -> None:
    body = bytes(4 << 20)
    message = ASK.replace(b"Length: 0", b"Length: %d" % len(body)) + body
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    with stub(lambda _: answer) as address:
        sent = driven(address, tmp_path, [0, 1, 2, 3, 4], message=message, connections=2)

    assert len(latencies_ms(sent)) == 5


def test_requests_are_sent_when_they_are_due(tmp_path: Path) -> None:
    due_ms = list(range(0, 200, 20))
    with stub(lambda _: OK) as address:
        sent = driven(address, tmp_path, due_ms)

    assert sent.wall_s >= 0.18
    assert np.frombuffer(sent.late_ns, dtype=np.int64).min() >= 0
    assert sent.busy_share < 1


def test_several_generators_send_each_request_once(tmp_path: Path) -> None:
    with stub(lambda _: OK) as address, Generators(address, count=2, connections=4) as generators:
        messages = generators.messages([ASK, ASK])
        opened = generators.open_loop(
            messages, np.arange(0, 100, 2, dtype=np.int64) * 1_000_000, patience_s=5
        )
        closed = generators.closed_loop(messages, connections=2, duration_s=0.1)

    assert opened.requests == len(opened.latencies_ns) == 50
    assert closed.failed == 0
    assert closed.answered_per_s > 0


def test_a_generator_that_finds_no_server_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServingError, match="cannot connect"):
        wire.connect(f"http://127.0.0.1:{port}")
    for address in ("nonsense", "https://127.0.0.1:1", "http://127.0.0.1", "unix:/no/such/socket"):
        with pytest.raises(ServingError, match="cannot connect"):
            wire.connect(address)


def test_a_request_is_one_that_the_server_reads() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw = wire.request("m", {"x": values}, version="1.0.0", timeout_us=7)
    head, _, rest = raw.partition(b"\r\n\r\n")
    length = int(head.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])

    prepared = v2.prepare(
        rest[:length],
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
    )

    arrays = v2.read_arrays(prepared.form, rest, offset=length, size_bytes=len(rest) - length)
    np.testing.assert_array_equal(arrays["x"], values)
    assert [wanted.binary for wanted in prepared.form.outputs] == [True]
    assert prepared.form.timeout_us == 7


# What ran out.


def usage(**changes: object) -> Usage:
    idle = Usage(
        cores=4,
        cores_allowed=4.0,
        server_cores=0.4,
        loop_cores=0.3,
        worker_cores=0.1,
        engine_share=0.2,
        generator_cores=0.2,
        other_cores=0.0,
        memory_bytes=100 << 20,
        free_share=0.5,
        bytes_per_s=1e6,
        rejected=0,
    )
    return msgspec.structs.replace(idle, **changes)


@pytest.mark.parametrize(
    ("changes", "resource"),
    [
        ({}, "time"),
        ({"rejected": 3}, "queue"),
        ({"loop_cores": 0.97, "rejected": 3}, "event loop"),
        ({"worker_cores": 0.97, "engine_share": 0.95}, "engine"),
        ({"server_cores": None, "loop_cores": None, "engine_share": 0.99}, "engine"),
        ({"server_cores": 3.8, "worker_cores": 0.8}, "CPU"),
        ({"generator_cores": 2.0, "other_cores": 1.5}, "CPU of the machine"),
        ({"free_share": 0.01, "loop_cores": 1.0}, "memory"),
    ],
)
def test_what_ran_out_is_named(changes: dict[str, object], resource: str) -> None:
    assert resources.ran_out(usage(**changes)).resource == resource


def test_a_board_that_was_slowed_down_has_run_out_of_cooling() -> None:
    found = resources.ran_out(usage(loop_cores=1.0), throttled=("the board was throttled: hot",))

    assert found.resource == "cooling"
    assert "hot" in found.why


def test_cpu_of_children_and_of_each_thread_is_counted() -> None:
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        moment = resources.read([process.pid])
        family = resources.descendants([process.pid])
        process.communicate(b"\n")

    assert len(family) == 2
    assert sum(moment.threads_s.values()) >= 0.3
    assert max(spent for (pid, _), spent in moment.threads_s.items() if pid != process.pid) >= 0.29
    assert moment.memory_bytes > 0
    assert 0 < moment.free_bytes <= moment.total_bytes


def test_a_control_group_narrows_the_cores(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")

    assert resources.cores_allowed(None, cgroup=tmp_path) == 0.5
    assert resources.cores_allowed(None, cgroup=tmp_path / "none") >= 1


def seen(*, late_ms: float, busy_share: float) -> Load:
    return Load(
        latencies_ns=np.full(100, 60_000_000),
        late_ns=np.full(100, round(late_ms * 1e6)),
        statuses={},
        failed=0,
        starved=0,
        wall_s=1.0,
        busy_share=busy_share,
        sent_bytes=0,
    )


def test_a_run_that_the_generator_spoilt_is_void() -> None:
    assert reasons_void(seen(late_ms=1, busy_share=0.5), [P99]) == ()
    assert "sent 30 ms late" in reasons_void(seen(late_ms=30, busy_share=0.5), [P99])[0]
    assert "worked 95%" in reasons_void(seen(late_ms=1, busy_share=0.95), [P99])[0]
