"""Faults around a real `edgekit run`: a request has one answer, it lives, and nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests import bundles
from tests.runtime.served import Answer, Wire, get, infer, output, post, until
from tests.system.daemons import wait_for
from tests.system.edge_run import EdgeRun, running

pytestmark = pytest.mark.system

SAMPLES = bundles.samples(8)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)
SMALL = bundles.mlp((bundles.FEATURES, 8, bundles.CLASSES), seed=7)
BY_SMALL = bundles.directly(SMALL, SAMPLES)
READY = "edgekit_variant_ready"
LOSSES = "edgekit_variant_losses_total"
# A reset instead of an orderly end.
LINGER = struct.pack("ii", 1, 0)


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    """A bundle with a default variant and a small one."""
    return bundles.write(tmp_path, beside={"small": SMALL})


@pytest.fixture
def run(edge: Path, tmp_path: Path) -> Iterator[EdgeRun]:
    """It, served from processes."""
    with running(edge, "--workers", "process", log=tmp_path / "log") as server:
        yield server


def in_use(server: EdgeRun) -> Counter[str]:
    """What it holds when both variants are open."""
    for name in ("float", "small"):
        assert is_right(server.ask(infer(SAMPLES, parameters={"variant": name})))
    wait_for(lambda: not server.connections(), "the end of the connections")
    return server.holds()


def change(what: str) -> bytes:
    return post(f"/v2/repository/models/tiny/{what}", b"")


def is_right(answer: Answer) -> bool:
    """Whether it holds what one of the variants gives for the samples."""
    found = output(answer)
    return any(np.allclose(found, one, atol=1e-5) for one in (EXPECTED, BY_SMALL))


@contextmanager
def clients(server: EdgeRun, count: int = 4) -> Iterator[Counter[str]]:
    """Ask all the time, and count answers by status, and what each error says.

    An answer 200 counts only if it is right. Programs end with the block, or with the server.
    """
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def work() -> None:
        with Wire(server) as wire:
            while not stop.is_set():
                try:
                    answer = wire.ask(infer(SAMPLES))
                except OSError:
                    seen["closed"] += 1
                    return
                good = answer.status != 200 or is_right(answer)
                seen[str(answer.status) if good else "wrong"] += 1
                if answer.status != 200:
                    seen[answer.error] += 1

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: seen["200"] > 20)
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# Workers.


def test_killed_over_and_over_a_worker_waits_and_another_variant_answers(run: EdgeRun) -> None:
    before = in_use(run)
    victim, small = run.children()
    with clients(run) as seen:
        for loss in range(1, 4):
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda n=loss: run.metric(LOSSES) == n, "its loss")  # type: ignore[misc]
            if loss < 3:
                wait_for(lambda: run.metric(READY, 'variant="float"') == 1, "another worker")
                known = {small, victim}
                victim = wait_for(lambda old=known: set(run.children()) - old, "another").pop()  # type: ignore[misc]
        assert run.metric("edgekit_breaker_open", 'variant="float"') == 1
        answered = seen["200"]
        until(lambda: seen["200"] > answered + 20)
        wait_for(lambda: run.children() == [small], "the end of the worker")
        assert run.ask(get("/v2/health/ready")).status == 200
        wait_for(lambda: len(run.children()) == 2, "the worker after its pause")

    assert "wrong" not in seen
    assert {status for status in seen if len(status) == 3} <= {"200", "503"}
    assert all("died: signal 9" in text for text in seen if len(text) > 3)
    run.settles(before)


def test_requests_with_a_worker_that_hangs_get_their_deadlines_told(run: EdgeRun) -> None:
    before = in_use(run)
    workers = run.children()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    storm = infer(SAMPLES, parameters={"timeout": 20_000})
    told: Counter[int] = Counter()

    def hurry() -> None:
        with Wire(run) as wire:
            for _ in range(25):
                told[wire.ask(storm).status] += 1

    threads = [threading.Thread(target=hurry) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        os.kill(worker, signal.SIGCONT)

    assert told == {504: 200}
    assert is_right(run.ask(infer(SAMPLES)))
    assert run.children() == workers
    run.settles(before)


def test_a_worker_that_hangs_is_ended_and_each_of_its_requests_is_told(
    edge: Path, tmp_path: Path
) -> None:
    words = ["--workers", "process", "--run-limit-s", "0.5"]
    with running(edge, *words, log=tmp_path / "log") as server:
        before = in_use(server)
        hung, _ = server.children()
        with clients(server) as seen:
            os.kill(hung, signal.SIGSTOP)
            wait_for(lambda: server.metric(LOSSES) == 1, "its loss")
            answered = seen["200"]
            until(lambda: seen["200"] > answered + 20)
            wait_for(lambda: server.metric(READY, 'variant="float"') == 1, "another worker")

        assert {status for status in seen if len(status) == 3} <= {"200", "503"}
        assert all("hung: no answer within 0.5 s" in text for text in seen if len(text) > 3)
        assert hung not in server.children()
        server.settles(before)


def test_without_descriptors_nothing_dies_and_with_them_all_comes_back(run: EdgeRun) -> None:
    before = in_use(run)
    with Wire(run) as wire:
        assert is_right(wire.ask(infer(SAMPLES)))
        run.limit_descriptors(len(os.listdir(f"/proc/{run.pid}/fd")) - 3)
        for worker in run.children():
            os.kill(worker, signal.SIGKILL)
        until(lambda: b"Too many open files" in wire.ask(infer(SAMPLES)).body)
        assert wire.ask(get("/v2/health/live")).status == 200
        assert wire.ask(get("/v2/models/tiny/ready")).status == 503
        run.limit_descriptors()
        wait_for(lambda: wire.ask(infer(SAMPLES)).status == 200, "a worker")
    run.settles(before)


def test_clients_that_take_every_descriptor_make_nobody_wait_for_ever(run: EdgeRun) -> None:
    before = in_use(run)
    with Wire(run) as wire, ExitStack() as held:
        assert is_right(wire.ask(infer(SAMPLES)))
        run.limit_descriptors(len(os.listdir(f"/proc/{run.pid}/fd")) + 5)
        for _ in range(20):
            held.enter_context(Wire(run))
        assert is_right(wire.ask(infer(SAMPLES)))
        held.close()
        run.limit_descriptors()
        wait_for(lambda: is_let_in(run), "a place for a new client")
        assert is_right(wire.ask(infer(SAMPLES)))
    run.settles(before)


def is_let_in(server: EdgeRun) -> bool:
    try:
        return server.ask(get("/v2/health/ready")).status == 200
    except OSError:
        return False


# Clients.


def silent(_: Wire) -> None:
    """Say nothing."""


def part_of_a_head(wire: Wire) -> None:
    wire.send(infer(SAMPLES)[:20])


def part_of_a_body(wire: Wire) -> None:
    wire.send(infer(bundles.samples(4000))[:-1])


def asks_and_goes(wire: Wire) -> None:
    wire.send(infer(SAMPLES))


def asks_much_and_goes(wire: Wire) -> None:
    wire.send(infer(SAMPLES) * 50)


def reads_a_part_of_the_answer(wire: Wire) -> None:
    wire.send(infer(SAMPLES))
    wire.socket.recv(10)


def half_closes(wire: Wire) -> None:
    wire.send(infer(SAMPLES) + infer(SAMPLES)[:-1])
    wire.socket.shutdown(socket.SHUT_WR)


STATES = [silent, part_of_a_head, part_of_a_body, asks_and_goes, asks_much_and_goes,
          reads_a_part_of_the_answer, half_closes]  # fmt: skip


@pytest.mark.parametrize("is_reset", [True, False])
def test_clients_in_any_state_hold_up_nobody_and_leave_nothing(
    run: EdgeRun, is_reset: bool
) -> None:
    before = in_use(run)
    with clients(run, 1) as seen:
        with ExitStack() as held:
            for state in STATES * 5:
                wire = held.enter_context(Wire(run))
                state(wire)
                if is_reset:
                    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
            answered = seen["200"]
            until(lambda: seen["200"] > answered + 20)
        answered = seen["200"]
        until(lambda: seen["200"] > answered + 20)

    assert set(seen) == {"200"}
    run.settles(before)


def test_a_thousand_requests_sent_ahead_are_answered_in_their_order(run: EdgeRun) -> None:
    rows = bundles.samples(1000)
    expected = bundles.directly(bundles.mlp(), rows)
    requests = [infer(rows[i : i + 1], id=str(i)) for i in range(len(rows))]
    with Wire(run) as wire:
        sender = threading.Thread(target=wire.send, args=(b"".join(requests),))
        sender.start()
        for number, want in enumerate(expected):
            answer = wire.answer()
            assert answer.json["id"] == str(number)
            np.testing.assert_allclose(output(answer), want[None], atol=1e-5)
        sender.join()


# What is served changes.


def test_a_swap_under_load_fails_no_request_and_leaves_nothing(run: EdgeRun, edge: Path) -> None:
    swap(run, edge, "1.0.1")
    before = in_use(run)
    with clients(run) as seen:
        for version in ("1.0.2", "1.0.3", "1.0.4"):
            swap(run, edge, version)

    assert set(seen) == {"200"}
    in_use(run)
    run.settles(before)


def swap(server: EdgeRun, edge: Path, version: str) -> None:
    """Put another version in the bundle's place, and wait for the end of the one before."""
    workers = server.children()
    newer = bundles.write(edge.parent, version=version, beside={"small": SMALL})
    newer.replace(edge)
    assert server.ask(change("load")).status == 200
    assert server.ask(get("/v2/models/tiny")).json["versions"] == [version]
    wait_for(lambda: not set(workers) & set(server.children()), "the end of the workers before")


def test_unloading_under_load_ends_the_worker_and_tells_who_asks(run: EdgeRun) -> None:
    with clients(run) as seen:
        assert run.ask(change("unload")).status == 200
        wait_for(lambda: not run.children(), "the end of its worker")
        until(lambda: seen["404"] > 20)
        assert run.ask(change("load")).status == 200
        answered = seen["200"]
        until(lambda: seen["200"] > answered + 20)

    assert {status for status in seen if len(status) == 3} == {"200", "404"}


# The end.


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        ("loop", signal.SIGINT),
        ("thread", signal.SIGTERM),
        ("process", signal.SIGINT),
        ("process", signal.SIGTERM),
    ],
)
def test_told_to_end_under_load_it_does_so_in_good_order(
    workers: str, number: signal.Signals, edge: Path, tmp_path: Path
) -> None:
    with (
        running(edge, "--workers", workers, log=tmp_path / "log") as server,
        clients(server) as seen,
    ):
        children = server.children()
        assert server.end(number) == 0

    assert set(seen) == {"200", "closed"}
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert "Traceback" not in server.log
    assert "Warning" not in server.log


def test_killed_it_leaves_no_worker(run: EdgeRun) -> None:
    in_use(run)
    idle, hung = run.children()
    os.kill(hung, signal.SIGSTOP)
    run.end(signal.SIGKILL)

    wait_for(lambda: has_ended(idle) and has_ended(hung), "the end of its workers")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, but for what its new parent has yet to read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
