"""Cache: answers by model digest, variant and input, for requests that come again.

Bounded in bytes, the longest unused answer goes first. Looking up costs something with each
request, so the cache watches what it saves and turns itself off for a while where that is less
than what it costs. Keys are xxh3 of 128 bits, so that two inputs do not meet by accident; an
answer that somebody *wants* another client to get could be made to, which is why a cache is only
asked for by whoever serves (`cache_mb`), for clients that trust each other.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit_runtime.serving.job import Outputs

if TYPE_CHECKING:
    from edgekit_runtime.serving.rung import Rung

WINDOW = 512
# Lookups skipped after a window that did not pay; doubled each time, up to the limit.
FIRST_PAUSE = 4096
LONGEST_PAUSE = 1 << 20
_OVERHEAD_BYTES = 400


class Answer(NamedTuple):
    """What is kept: outputs of its own memory, and the rung that gave them."""

    outputs: Outputs
    rung: Rung
    size_bytes: int


def pays(*, hits: int, lookups: int, run_ns: float, lookup_ns: float) -> bool:
    """Whether what the hits saved is more than what all the lookups cost."""
    return hits * run_ns > lookups * lookup_ns


class Cache:
    """Answers of one served model version. Lives on the event loop.

    Args:
        budget_bytes: of inputs' keys and outputs.
        clock_ns: for measuring what a lookup costs.
    """

    def __init__(
        self, *, budget_bytes: int, clock_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._digest = _xxh3()
        self._budget_bytes = budget_bytes
        self._clock_ns = clock_ns
        self._answers: OrderedDict[tuple[Any, ...], Answer] = OrderedDict()
        self._held_bytes = 0
        self._lookups = self._hits = self._spent_ns = 0
        self._skip = 0
        self._pause = FIRST_PAUSE
        self.hits = self.misses = 0
        self.hit_ns = self.miss_ns = 0

    @property
    def size_bytes(self) -> int:
        """What it holds now."""
        return self._held_bytes

    @property
    def is_on(self) -> bool:
        """Whether the next request is looked up."""
        return self._skip == 0

    def key(self, inputs: Mapping[str, NDArray[Any]], pin: str | None) -> tuple[Any, ...] | None:
        """The key of a request; `None` while the cache is off or where there can be none."""
        if self._skip:
            self._skip -= 1
            return None
        started = self._clock_ns()
        parts: list[Any] = [pin]
        for name in sorted(inputs):
            array = inputs[name]
            if array.dtype == object:
                return None
            contiguous = np.ascontiguousarray(array)
            parts += [name, array.dtype.str, array.shape, self._digest(contiguous)]
        self._spent_ns += self._clock_ns() - started
        return tuple(parts)

    def get(self, key: tuple[Any, ...], *, run_ns: float) -> Answer | None:
        """The answer to the same request; `run_ns` is what it would take to run it."""
        started = self._clock_ns()
        answer = self._answers.get(key)
        took = self._clock_ns() - started
        if answer is None:
            self.misses += 1
            self.miss_ns += took
        else:
            self._answers.move_to_end(key)
            self._hits += 1
            self.hits += 1
            self.hit_ns += took
        self._spent_ns += took
        self._lookups += 1
        if self._lookups == WINDOW:
            self._judge(run_ns)
        return answer

    def put(self, key: tuple[Any, ...], outputs: Outputs, rung: Rung) -> None:
        """Keep an answer, in memory of its own."""
        if any(array.dtype == object for array in outputs.values()):
            return
        size = _OVERHEAD_BYTES + sum(array.nbytes for array in outputs.values())
        if size > self._budget_bytes // 4 or key in self._answers:
            return
        own = {name: array.copy() for name, array in outputs.items()}
        self._answers[key] = Answer(own, rung, size)
        self._held_bytes += size
        while self._held_bytes > self._budget_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._held_bytes -= oldest.size_bytes

    def clear(self) -> None:
        """Forget every answer."""
        self._answers.clear()
        self._held_bytes = 0

    def _judge(self, run_ns: float) -> None:
        lookup_ns = self._spent_ns / self._lookups
        if pays(hits=self._hits, lookups=self._lookups, run_ns=run_ns, lookup_ns=lookup_ns):
            self._pause = FIRST_PAUSE
        else:
            self.clear()
            self._skip = self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
        self._lookups = self._hits = self._spent_ns = 0


def _xxh3() -> Callable[[Any], bytes]:
    try:
        from xxhash import xxh3_128_digest
    except ImportError as e:
        raise UsageError("a cache of answers needs xxhash", hint="pip install xxhash") from e
    digest: Callable[[Any], bytes] = xxh3_128_digest
    return digest
