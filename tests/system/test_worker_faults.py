"""Workers are killed, hang and come and go; each request has one answer, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.process.runner import ProcessRunner
from edgekit_runtime.serving.process.session import open_process
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.settings import Settings
from tests import bundles
from tests.runtime.descriptors import descriptors
from tests.runtime.served import Wire, infer, load, output, serving, until

pytestmark = pytest.mark.system

SAMPLES = bundles.samples(8)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)
SMALL = bundles.mlp((bundles.FEATURES, 8, bundles.CLASSES), seed=7)
BY_SMALL = bundles.directly(SMALL, SAMPLES)


def pid_of(served: Served) -> int:
    """Of the process that runs the default variant at present."""
    runner = served.default.opened.runner
    assert isinstance(runner, ProcessRunner)
    return runner.pid


def is_gone(pid: int) -> bool:
    """Whether there is no such process, be it as a zombie."""
    return not Path(f"/proc/{pid}").exists()


def answered_by(wire: Wire) -> str:
    """The variant whose answer a request got."""
    found = output(wire.ask(infer(SAMPLES)))
    variants = {"float": EXPECTED, "small": BY_SMALL}
    return next(name for name, y in variants.items() if np.allclose(found, y, atol=1e-5))


def test_every_request_has_one_answer_while_workers_are_killed(tmp_path: Path) -> None:
    models = Models(Settings(workers="process"))
    served = load(models, tmp_path)
    counts: Counter[int] = Counter()
    stop = threading.Event()
    with serving(models) as server:

        def client(number: int) -> None:
            with Wire(server) as wire:
                while not stop.is_set():
                    answer = wire.ask(infer(SAMPLES[number : number + 1]))
                    counts[answer.status] += 1
                    if answer.status == 200:
                        want = EXPECTED[number : number + 1]
                        np.testing.assert_allclose(output(answer), want, atol=1e-5)
                    else:
                        assert answer.status == 503, answer.body
                        assert "died: signal 9" in answer.error, answer.error

        clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in clients:
            thread.start()
        killed = []
        for _ in range(2):
            before = counts[200]
            until(lambda n=before: counts[200] > n + 50)  # type: ignore[misc]
            killed.append(pid_of(served))
            os.kill(killed[-1], signal.SIGKILL)
            until(lambda old=killed[-1]: pid_of(served) != old)  # type: ignore[misc]
        before = counts[200]
        until(lambda: counts[200] > before + 50)
        stop.set()
        for thread in clients:
            thread.join()
        with Wire(server) as wire:
            assert answered_by(wire) == "float"

    assert set(counts) <= {200, 503}
    assert served.default.losses == 2
    assert all(is_gone(pid) for pid in killed)


def test_a_worker_that_hangs_is_ended_and_another_variant_answers_meanwhile(tmp_path: Path) -> None:
    models = Models(Settings(workers="process", run_limit_s=0.5))
    served = load(models, tmp_path, beside={"small": SMALL})
    with serving(models) as server, Wire(server) as wire:
        assert answered_by(wire) == "float"
        small = wire.ask(infer(SAMPLES, parameters={"variant": "small"}))
        np.testing.assert_allclose(output(small), BY_SMALL, atol=1e-5)
        hung = pid_of(served)
        os.kill(hung, signal.SIGSTOP)
        answer = wire.ask(infer(SAMPLES))

        assert answer.status == 503
        assert "hung: no answer within 0.5 s" in answer.error
        assert answered_by(wire) == "small"
        until(lambda: answered_by(wire) == "float")
        assert pid_of(served) != hung
        assert is_gone(hung)


def test_a_worker_that_dies_idle_is_replaced_before_anybody_asks(tmp_path: Path) -> None:
    models = Models(Settings(workers="process"))
    served = load(models, tmp_path)
    with serving(models) as server, Wire(server) as wire:
        assert answered_by(wire) == "float"
        dead = pid_of(served)
        os.kill(dead, signal.SIGSEGV)
        until(lambda: pid_of(served) != dead and served.default.state == "ready")

        assert answered_by(wire) == "float"


def test_unloading_ends_the_worker_after_its_last_answer(tmp_path: Path) -> None:
    models = Models(Settings(workers="process"))
    served = load(models, tmp_path)
    pid = pid_of(served)
    with serving(models) as server, Wire(server) as wire:
        os.kill(pid, signal.SIGSTOP)
        wire.send(infer(SAMPLES))
        until(lambda: served.scheduler.is_busy)
        models.remove("tiny", "1.0.0")
        assert not served.wait_closed(0.1)
        os.kill(pid, signal.SIGCONT)
        np.testing.assert_allclose(output(wire.answer()), EXPECTED, atol=1e-5)

        assert served.wait_closed(10)
        assert is_gone(pid)


def test_a_worker_ends_with_the_daemon_even_if_it_hangs(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(bundles.mlp())
    program = f"""
import os, signal, sys, threading
from pathlib import Path
from edgekit_runtime.serving.process.session import open_process
opened = []
def load():
    opened.append(open_process(Path({str(model)!r}), "onnxruntime", {{}}, name="tiny"))
thread = threading.Thread(target=load)
thread.start()
thread.join()
assert opened[0].run({{"x": __import__("numpy").zeros((1, 16), "f4")}})
os.kill(opened[0].pid, signal.SIGSTOP)
print(opened[0].pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        worker = int(daemon.stdout.readline())
        assert not is_gone(worker), "the end of the thread that loaded it does not end it"
        daemon.kill()
    until(lambda: is_gone(worker) or _state(worker) == "Z")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()[0]


def test_twenty_workers_come_and_go_without_a_trace(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(bundles.mlp())
    before = descriptors()
    for turn in range(20):
        session = open_process(model, "onnxruntime", {}, name="tiny")
        pid = session.pid
        if turn % 5 == 0:
            os.kill(pid, signal.SIGKILL)
        else:
            np.testing.assert_allclose(session.run({"x": SAMPLES})["y"], EXPECTED, atol=1e-5)
        session.close()
        assert is_gone(pid)
    del session

    assert descriptors() <= before
