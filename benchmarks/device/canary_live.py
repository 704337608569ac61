"""Canaries in a real server: what they decide, and what requests notice of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.device.canary_cases import Case
from benchmarks.process import cpu_s
from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.canary.trial import Trial
from edgekit_runtime.serving.address import Address, Tcp
from edgekit_runtime.serving.models import Models
from tests import bundles
from tests.runtime.served import HOST, Wire, infer, port, serving, until

QUICK = CanarySection(min_s=2, spacing_s=0, cpu_share=1)
LIVE = ("the same again", "learnt from twice the data", "weights of 8 bits", "weights of 2 bits",
        "7 epochs", "light on dark")  # fmt: skip
ENDLESS = CanarySection(min_s=86_000, limit_s=86_400)
ROUNDS = 8
ROUND_S = 6.0
RATE = 25
SIZE = 224
CHANNELS = 28


def tried(folder: Path, samples: NDArray[np.float32], cases: Sequence[Case]) -> dict[str, Any]:
    """Versions of the network for digits, tried while real requests with real digits come in."""
    told = {}
    models_of = {case.name: case.model for case in cases}
    rng = np.random.default_rng(0)
    for at, name in enumerate(LIVE):
        models = Models()
        old = models.load(
            bundles.unpacked(folder / f"old{at}", model=models_of["the same again"]),
            verified_by="benchmark",
        )
        models.activate(old)
        with serving(models) as server, Wire(server) as wire:
            new = models.load(
                bundles.unpacked(folder / f"new{at}", version="2.0.0", model=models_of[name]),
                verified_by="benchmark",
            )
            trial = Trial(old, new, settings=QUICK, rng=np.random.default_rng(at))
            while (verdict := trial.verdict()) is None:
                sample = samples[int(rng.integers(len(samples)))][np.newaxis]
                assert wire.ask(infer(sample)).status == 200
            trial.close()
            models.discard(new)
        reason = "" if verdict.reason is None else verdict.reason.value
        told[f"served: digits, {name}"] = {
            "decision": verdict.decision, "reason": reason, **verdict.figures
        }  # fmt: skip
    return told


def costs(folder: Path) -> dict[str, Any]:
    """Latency of requests to a convolutional network, and CPU of the server, in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, float] = {False: 0.0, True: 0.0}
    array = np.random.default_rng(0).normal(0, 1, (1, 3, SIZE, SIZE)).astype(np.float32)
    request = infer(array)
    with _child(folder) as child, Wire(_At(child)) as wire:
        for turn in range(2 * ROUNDS):
            beside = turn % 2 == 1
            _tell(child, "on" if beside else "off")
            before = cpu_s(child.pid)
            times[beside] += _asked(wire, request)
            cpu[beside] += cpu_s(child.pid) - before
    asked = len(times[False])
    return {
        f"live requests {'with' if beside else 'without'} a canary": {
            "p50_ms": round(quantiles(times[beside], n=100)[49], 2),
            "p99_ms": round(quantiles(times[beside], n=100)[98], 2),
            "cpu_ms_per_request": round(cpu[beside] * 1000 / asked, 2),
            "requests": len(times[beside]),
        }
        for beside in (False, True)
    }


def _asked(wire: Wire, request: bytes) -> list[float]:
    """Milliseconds of each request of one round, sent at a steady pace."""
    times = []
    start = time.perf_counter()
    for number in range(int(ROUND_S * RATE)):
        time.sleep(max(0.0, start + number / RATE - time.perf_counter()))
        sent = time.perf_counter()
        assert wire.ask(request).status == 200
        times.append((time.perf_counter() - sent) * 1000)
    return times


class _At:
    """The child's server."""

    def __init__(self, child: Popen[str]) -> None:
        assert child.stdout is not None
        self._port = int(child.stdout.readline())

    @property
    def addresses(self) -> list[Address]:
        return [Tcp(HOST, self._port)]


@contextmanager
def _child(folder: Path) -> Iterator[Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.device.canary_live", str(folder)]
    child = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait()


def _tell(child: Popen[str], word: str) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(word + "\n")
    child.stdin.flush()
    assert child.stdout.readline().strip() == word


def _serve(folder: Path) -> None:
    """Serve until standard input ends; "on" and "off" begin and end a canary."""
    model = bundles.convnet(size=SIZE, channels=CHANNELS)
    models = Models()
    old = models.load(bundles.unpacked(folder / "live-old", model=model), verified_by="benchmark")
    models.activate(old)
    with serving(models) as server:
        new = models.load(
            bundles.unpacked(folder / "live-new", version="2.0.0", model=model),
            verified_by="benchmark",
        )
        print(port(server), flush=True)
        trial: Trial | None = None
        for line in sys.stdin:
            if trial is not None:
                trial.close()
                trial = None
            if line.strip() == "on":
                trial = Trial(old, new, settings=ENDLESS)
                until(lambda: old.shadow is not None)
            print(line.strip(), flush=True)
        if trial is not None:
            trial.close()
        models.discard(new)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
