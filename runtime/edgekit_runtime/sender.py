"""Sender: brings the outbox to the coordinator, in order, until everything is acknowledged.

Promise: at most `window` messages are on their way; what is not acknowledged in time is sent again,
more and more rarely; a message behind a gap waits until the one before the gap is acknowledged,
because the coordinator acknowledges only what follows without a gap.

Telemetry waits up to `linger_s` for company and travels in batches; an event goes at once, and
takes what waits before it along. What is not acknowledged although it was repeated goes alone and
uncompressed: a coordinator that cannot read a batch must not stop the outbox.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from random import Random

from edgekit import batches
from edgekit.clock import Clock
from edgekit_runtime.outbox import Kind, Outbox, Pending

WINDOW = 500
ACK_TIMEOUT_S = 10.0
LONGEST_TIMEOUT_S = 300.0
IDLE_S = 3600.0
# A message that was repeated so often goes alone.
ALONE_AFTER = 2

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

    Attributes:
        linger_s: how long telemetry waits for more of it.
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
        self.linger_s = 0.0
        self._lock = threading.Lock()
        self._in_haste = False
        self._waits_since: float | None = None
        self._sent_to = 0
        self._last_sent: dict[str, int] = {}
        self._repetitions = 0
        self._repeat_at: float | None = None

    def connected(self) -> None:
        """The link is new: nothing that was sent before counts."""
        with self._lock:
            self._restart()
            self._repetitions = 0

    def hasten(self) -> None:
        """Let nothing that is in the outbox by the next step wait for company."""
        with self._lock:
            self._in_haste = True

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
            wait_s = self._fill_window(now)
            if self._under_way() == 0:
                return wait_s
            if self._repeat_at is None:
                self._repeat_at = now + self._timeout_s()
            return min(wait_s, max(0.0, self._repeat_at - now))

    def _restart(self) -> None:
        self._sent_to = 0
        self._last_sent.clear()
        self._repeat_at = None
        self._in_haste = True

    def _under_way(self) -> int:
        return self._outbox.count(up_to=self._sent_to) if self._sent_to else 0

    def _fill_window(self, now: float) -> float:
        """Send what may be sent; seconds until what waits for company need wait no longer."""
        room = self._window - self._under_way()
        if room <= 0:
            return IDLE_S
        waiting = self._outbox.pending(room, after=self._sent_to)
        patience_s = self._patience_s(waiting, now)
        if patience_s > 0:
            return patience_s
        ready = without_gap(waiting, last=self._last_sent)
        for frame, sent in frames(ready, alone=self._repetitions >= ALONE_AFTER):
            if not self._publish(sent[0].kind, frame):
                return IDLE_S
            self._sent_to = sent[-1].position
            self._last_sent.update({message.boot: message.seq for message in sent})
        self._in_haste = False
        self._waits_since = None
        return IDLE_S

    def _patience_s(self, waiting: Sequence[Pending], now: float) -> float:
        if not waiting:
            self._in_haste = False
            return IDLE_S
        if self._waits_since is None:
            self._waits_since = now
        urgent = self._in_haste or any(message.kind == "event" for message in waiting)
        return 0.0 if urgent else self._waits_since + self.linger_s - now

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


def frames(
    messages: Sequence[Pending], *, alone: bool
) -> Iterator[tuple[bytes, Sequence[Pending]]]:
    """Payloads that carry the messages in their order, each with those that are in it.

    A payload holds messages of one kind, for each kind has its topic. An event without company
    stays as it is, to be read by whoever watches the topic.

    Args:
        alone: put no two messages together, and compress none.
    """
    for kind, group in groupby(messages, key=lambda message: message.kind):
        left = list(group)
        while left:
            count = batches.fitting([len(message.payload) for message in left])
            sent = left[: 1 if alone else max(1, count)]
            plain = alone or count == 0 or (kind == "event" and len(sent) == 1)
            texts = [message.payload for message in sent]
            yield texts[0] if plain else batches.pack(texts), sent
            left = left[len(sent) :]
