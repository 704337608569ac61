"""`benchmark`: the golden inputs of a served model, behind all other requests, for some seconds.

What is measured is what a local program would see: the requests go through the model's own queue
and worker, at the lowest priority, one at a time, with a pause as long as each took, so that they
take at most half of the engine's time. A model that is busy for more than a quarter of its time is
left alone. The model's statistics count the requests; neither its drift nor its cache sees them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit.control import Benchmark
from edgekit.errors import EngineError, Overloaded
from edgekit_runtime import sensors
from edgekit_runtime.control.hands import Hands, Wait
from edgekit_runtime.engines import Tensors
from edgekit_runtime.engines.batches import iter_batches
from edgekit_runtime.serving.job import LOWEST_PRIORITY, Job, Outputs
from edgekit_runtime.serving.retirement import Retired
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served

MOST_BUSY = 0.25
_LOOK_S = 0.5
_MOST_RUNS = 20_000
# Between two looks at whether to stop, where an answer does not come.
_PATIENCE_S = 0.1


class _Question(Job):
    """One request; its answer's arrival is told, and the answer is not kept."""

    may_keep = False

    def __init__(self, inputs: Tensors) -> None:
        # A key of its own: it is never put together with what others ask.
        super().__init__(inputs, rows=0, key=object(), priority=LOWEST_PRIORITY)
        self.answered = threading.Event()
        self.error: Exception | None = None

    def done(self, outcome: Outputs | Exception, _: Rung | None) -> None:
        self.error = outcome if isinstance(outcome, Exception) else None
        self.answered.set()


def run(args: Benchmark, hands: Hands, wait: Wait) -> dict[str, Any]:
    """Latencies in milliseconds, with what the board's sensors said before and after."""
    served = hands.models.find(args.model)
    _refuse_where_busy(served, wait)
    with Bundle.open(served.folder) as bundle:
        samples = list(iter_batches(served.inputs, bundle.tensors(GOLDEN_INPUTS), size=1))
    before, counted = sensors.read_board(), served.snapshot()
    took_s = _measure(served, samples, hands, wait, seconds=args.seconds)
    after = served.snapshot()
    p50, p90, p99 = np.percentile(np.array(took_s) * 1000, (50, 90, 99))
    executions = after.executions - counted.executions
    return {
        "model": served.name,
        "version": served.version,
        "variant": served.default.name,
        "engine": f"{served.variant.engine} {served.engine_version}",
        "runs": len(took_s),
        "others": max(0, after.succeeded - counted.succeeded - len(took_s)),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "engine_ms": (after.run_ns - counted.run_ns) / max(1, executions) / 1e6,
        "before": msgspec.to_builtins(before),
        "after": msgspec.to_builtins(sensors.read_board()),
    }


def _measure(
    served: Served, samples: Sequence[Tensors], hands: Hands, wait: Wait, *, seconds: float
) -> list[float]:
    """Seconds that each request took."""
    took_s: list[float] = []
    until_s = time.perf_counter() + seconds
    while not took_s or (time.perf_counter() < until_s and len(took_s) < _MOST_RUNS):
        asked_s = time.perf_counter()
        _ask(served, samples[len(took_s) % len(samples)], hands, wait)
        took_s.append(time.perf_counter() - asked_s)
        if wait(took_s[-1]):
            break
    return took_s


def _ask(served: Served, inputs: Tensors, hands: Hands, wait: Wait) -> None:
    """Have one request answered, raising what it was answered with, or `EngineError`."""
    question = _Question(inputs)

    def submit() -> None:
        try:
            served.submit(question)
        except Retired:
            question.settle(EngineError(f"{served.name} was replaced meanwhile"), None)
        except Exception as e:  # noqa: BLE001 - raised where it is waited for
            question.settle(e, None)

    hands.on_loop(submit)
    while not question.answered.wait(_PATIENCE_S):
        if wait(0.0):
            hands.on_loop(question.abandon)
            raise EngineError(f"{served.name} did not answer in time")
    if question.error is not None:
        raise question.error


def _refuse_where_busy(served: Served, wait: Wait) -> None:
    before_ns, since = served.snapshot().run_ns, time.perf_counter()
    wait(_LOOK_S)
    share = (served.snapshot().run_ns - before_ns) / 1e9 / (time.perf_counter() - since)
    if share > MOST_BUSY or served.queue_depth:
        raise Overloaded(
            f"{served.name} is busy {share:.0%} of the time; a benchmark would disturb it",
            retry_after_s=60.0,
            hint="ask again when it is asked less",
        )
