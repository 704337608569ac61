"""Tap: copies of live inputs on their way to a canary. Taking one never waits and never grows.

Used on the event loop, where each batch costs a comparison of two numbers, and a sample that is
taken one copy of its inputs; the canary's thread takes them out on the other side.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import numpy as np

from edgekit_runtime.engines import Tensors


class Tap:
    """A bounded queue of inputs, each of one sample.

    Args:
        spacing_s: mean time between two samples; drawn anew each time, so that nothing that comes
            regularly is always missed.
        queue_bytes: of inputs that wait; what comes then is dropped. One always fits.
        clock: seconds.
        rng: chooses times, and rows of requests that hold several samples.

    Attributes:
        taken: samples that were copied.
        dropped: samples that were due and found the queue full.
    """

    def __init__(
        self,
        *,
        spacing_s: float,
        queue_bytes: int,
        clock: Callable[[], float],
        rng: np.random.Generator,
    ) -> None:
        self.taken = 0
        self.dropped = 0
        self._spacing_s = spacing_s
        self._limit_bytes = queue_bytes
        self._clock = clock
        self._rng = rng
        self._next_s = clock()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[dict[str, np.ndarray] | None] = queue.SimpleQueue()

    def is_due(self) -> bool:
        """Whether the next input is to be offered."""
        return self._clock() >= self._next_s

    def choose(self, count: int) -> int:
        """Which of so many requests to look at."""
        return int(self._rng.integers(count)) if count > 1 else 0

    def offer(self, inputs: Tensors, rows: int) -> None:
        """Copy one sample of a request, if there is room; on the loop.

        Args:
            inputs: of the request; only read here and now.
            rows: samples on axis 0; 0 where the arrays are one sample.
        """
        if not self.is_due():
            return
        self._next_s = self._clock() + self._spacing_s * (0.5 + self._rng.random())
        size_bytes = sum(array.nbytes for array in inputs.values()) // max(1, rows)
        with self._lock:
            if self._held_bytes and self._held_bytes + size_bytes > self._limit_bytes:
                self.dropped += 1
                return
            self._held_bytes += size_bytes
        row = self.choose(rows)
        self.taken += 1
        self._queue.put(
            {
                name: (array[row : row + 1] if rows > 1 else array).copy()
                for name, array in inputs.items()
            }
        )

    def take(self, timeout_s: float) -> Tensors | None:
        """The oldest sample; `None` where none comes in time, or the tap was closed."""
        try:
            inputs = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if inputs is not None:
            with self._lock:
                self._held_bytes -= sum(array.nbytes for array in inputs.values())
        return inputs

    def close(self) -> None:
        """Wake whoever takes."""
        self._queue.put(None)
