"""Access log: a line for a request that was slow or failed, and for each one at level debug.

A line has the id by which the client knows the request, so that both sides' logs can be held
together. Lines are bounded in rate, whatever clients do; the next one says how many were left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgekit_runtime.serving.call import Call
from edgekit_runtime.serving.failures import kind_of, status_of
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served

log = logging.getLogger(__name__)

_SERVER_ERROR = 500
_MOST_ID_CHARS = 128


class AccessLog:
    """Tells of requests. Lives on the event loop.

    Args:
        slow_s: a request that takes longer is told of.
        lines_per_s: lines at most, over some seconds.
        clock: seconds.

    Attributes:
        slow_ns: a request that takes longer is told of.
        is_verbose: every request is told of.
    """

    def __init__(
        self,
        *,
        slow_s: float = 1.0,
        lines_per_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slow_ns = round(slow_s * 1e9)
        self.is_verbose = log.isEnabledFor(logging.DEBUG)
        self._rate = lines_per_s
        self._clock = clock
        self._credit = lines_per_s
        self._at = clock()
        self._left_out = 0

    def answered(self, call: Call, served: Served, rung: Rung) -> None:
        """A request was answered with outputs."""
        took_ns = time.perf_counter_ns() - call.arrived_ns
        is_slow = took_ns >= self.slow_ns
        if not is_slow and not self.is_verbose:
            return
        level = logging.INFO if is_slow else logging.DEBUG
        event = "slow request" if is_slow else "request"
        facts = {"model": served.name, "version": served.version, "variant": rung.name}
        self._tell(level, event, call, took_ns, **facts)

    def failed(self, call: Call, error: Exception) -> None:
        """A request was answered with an error."""
        status = status_of(error) or _SERVER_ERROR
        level = logging.INFO if status >= _SERVER_ERROR else logging.DEBUG
        took_ns = time.perf_counter_ns() - call.arrived_ns
        facts = {"model": call.name, "version": call.version, "status": status}
        self._tell(
            level, "request failed", call, took_ns, **facts, kind=kind_of(error), error=str(error)
        )

    def _tell(self, level: int, event: str, call: Call, took_ns: int, **facts: object) -> None:
        if not log.isEnabledFor(level):
            return
        now = self._clock()
        self._credit = min(self._rate, self._credit + (now - self._at) * self._rate)
        self._at = now
        if self._credit < 1:
            self._left_out += 1
            return
        self._credit -= 1
        said = {name: value for name, value in facts.items() if value is not None}
        if name := call.request_id or call.form.id:
            said["request_id"] = name[:_MOST_ID_CHARS]
        if self._left_out:
            said["left_out"], self._left_out = self._left_out, 0
        said |= {"rows": call.form.rows, "took_ms": round(took_ns / 1e6, 3)}
        log.log(level, event, extra=said)
