"""Sender: brings the outbox to the coordinator, in order, until everything is acknowledged.

Promise: at most `window` messages are on their way; what is not acknowledged in time is sent again,
more and more rarely; a message behind a gap waits until the one before the gap is acknowledged,
because the coordinator acknowledges only what follows without a gap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from random import Random

from edgekit.clock import Clock
from edgekit_runtime.outbox import Kind, Outbox, Pending

WINDOW = 100
ACK_TIMEOUT_S = 10.0
LONGEST_TIMEOUT_S = 300.0
IDLE_S = 3600.0

Publish = Callable[[Kind, bytes], bool]


class Sender:
    """Decides what is sent now; one thread calls `step`, any thread reports what happened.

    Args:
        outbox: where the messages wait.
        publish: hands a message to the link; `False` while there is none.
        clock: for the time limits.
        rng: spreads the repetitions of many devices.
        window: most messages that are sent and not acknowledged.
        ack_timeout_s: how long the first acknowledgement may take; doubled at each repetition.
    """

    def __init__(
        self,
        outbox: Outbox,
        publish: Publish,
        *,
        clock: Clock,
        rng: Random,
        window: int = WINDOW,
        ack_timeout_s: float = ACK_TIMEOUT_S,
    ) -> None:
        self._outbox = outbox
        self._publish = publish
        self._clock = clock
        self._rng = rng
        self._window = window
        self._ack_timeout_s = ack_timeout_s
        self._lock = threading.Lock()
        self._sent_to = 0
        self._last_sent: dict[str, int] = {}
        self._repetitions = 0
        self._repeat_at: float | None = None

    def connected(self) -> None:
        """The link is new: nothing that was sent before counts."""
        with self._lock:
            self._restart()
            self._repetitions = 0

    def acknowledged(self, boot: str, seq: int) -> None:
        """The coordinator has stored everything of `boot` up to `seq`."""
        with self._lock:
            if self._outbox.ack(boot, seq):
                self._repetitions = 0
                self._repeat_at = None

    def step(self) -> float:
        """Send what may be sent now; returns seconds until there is something to do again."""
        with self._lock:
            now = self._clock.monotonic()
            if self._repeat_at is not None and now >= self._repeat_at:
                self._restart()
                self._repetitions += 1
            if not self._under_way():
                # What comes next begins a sequence of its own: its `floor` says so.
                self._last_sent.clear()
            self._fill_window()
            under_way = self._under_way()
            if under_way == 0:
                return IDLE_S
            if self._repeat_at is None:
                self._repeat_at = now + self._timeout_s()
            return max(0.0, self._repeat_at - now)

    def _restart(self) -> None:
        self._sent_to = 0
        self._last_sent.clear()
        self._repeat_at = None

    def _under_way(self) -> int:
        return self._outbox.count(up_to=self._sent_to) if self._sent_to else 0

    def _fill_window(self) -> None:
        room = self._window - self._under_way()
        if room <= 0:
            return
        for message in without_gap(
            self._outbox.pending(room, after=self._sent_to), last=self._last_sent
        ):
            if not self._publish(message.kind, message.payload):
                return
            self._sent_to = message.position
            self._last_sent[message.boot] = message.seq

    def _timeout_s(self) -> float:
        longest = min(LONGEST_TIMEOUT_S, self._ack_timeout_s * 2.0 ** min(self._repetitions, 16))
        return longest * (1.0 + self._rng.random() / 2)


def without_gap(found: Sequence[Pending], *, last: Mapping[str, int]) -> Sequence[Pending]:
    """The messages before the first that does not follow the one before it of the same boot.

    Args:
        found: messages in their order.
        last: highest `seq` by boot that is on its way already.
    """
    seen = dict(last)
    for index, message in enumerate(found):
        if seen.get(message.boot, message.seq - 1) != message.seq - 1:
            return found[:index]
        seen[message.boot] = message.seq
    return found
