"""Source: where a wanted bundle comes from: named by the signed repository, then downloaded.

Promise: an enrolled device downloads nothing but what the fleet's repository has signed, and what
`get` leaves is that, to the byte. A repository that refuses, lies or cannot be reached costs time
within the limit of the state and a bounded number of bytes, and nothing else: it is asked again,
more and more rarely, and after a file that was wrong not for hours.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from random import Random

from edgekit.clock import Clock
from edgekit.errors import LinkError
from edgekit.messages import Wanted
from edgekit_runtime.fetch import Fetcher, Interrupted, OnHold, Progress, Wait, backoff
from edgekit_runtime.telemetry import Events
from edgekit_runtime.trusted.repository import Repository, agree
from edgekit_runtime.update import Reason, UpdateFailed

log = logging.getLogger(__name__)

# What a repository can bring about by itself, whoever holds it; none of it speaks of the bundle.
PASSING = frozenset(
    {
        Reason.REPOSITORY_UNTRUSTED,
        Reason.REPOSITORY_STALE,
        Reason.REPOSITORY_REFUSED,
        Reason.NOT_IN_REPOSITORY,
        Reason.CLOCK_WRONG,
        Reason.FETCH_REFUSED,
        Reason.WRONG_SIZE,
        Reason.WRONG_SHA256,
    }
)
# Metadata was taken in, and believed in vain.
_WASTEFUL = frozenset({Reason.REPOSITORY_UNTRUSTED, Reason.REPOSITORY_STALE, Reason.CLOCK_WRONG})
_LONGEST_WASTE_S = 3600.0


class Source:
    """Brings bundles to this device.

    Args:
        fetcher: downloads.
        repository: the signed one; `None` where the device is in no fleet that signs.
        events: where the fleet hears why it takes so long.
        clock: measures the time limit.
        rng: spreads the attempts of many devices.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        repository: Repository | None,
        events: Events,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._fetcher = fetcher
        self._repository = repository
        self._events = events
        self._clock = clock
        self._rng = rng

    def fetch(
        self,
        wanted: Wanted,
        *,
        base: tuple[Path, str] | None,
        frees_bytes: int,
        limit_s: float,
        progress: Progress,
        wait: Wait,
    ) -> tuple[str, ...]:
        """Bring the file of a bundle, whole, to where `part` says.

        Returns the keys (PEM) of which one must have signed the bundle, as far as the repository
        names any.

        Args:
            wanted: what is asked for.
            base: the installed bundle's folder and digest, for a delta.
            frees_bytes: what goes from the free slot before the bundle is unpacked there.
            limit_s: for all attempts together, in seconds; hours outside the window do not count.
            progress: called with the share that is here.
            wait: waits for a number of seconds, and says whether the download shall end.

        Raises:
            UpdateFailed: with a reason code.
            Interrupted: `wait` said so.
        """
        folder, digest = base or (None, None)
        get = partial(
            self._fetcher.fetch,
            wanted,
            base=folder,
            base_digest=digest,
            frees_bytes=frees_bytes,
            progress=progress,
            wait=wait,
            tell=self._mended,
        )
        if self._repository is None:
            get(limit_s=limit_s)
            return ()
        hours = self._fetcher.hours(wait)
        get = partial(get, wait=hours.wait)
        begun_s = self._clock.monotonic()
        attempt, told = 0, set[Reason]()

        def left_s() -> float:
            return limit_s - (self._clock.monotonic() - begun_s - hours.closed_s)

        while True:
            try:
                target = self._repository.find(wanted.url, cancelled=lambda: wait(0.0))
                agree(target, wanted)
                get(target=target, limit_s=left_s())
                return target.keys
            except Interrupted:
                raise
            except (LinkError, UpdateFailed) as e:
                if wait(0.0):
                    raise Interrupted(f"{wanted.url}: the download was asked to end") from e
                reason = e.reason if isinstance(e, UpdateFailed) else Reason.REPOSITORY_UNREACHABLE
                if isinstance(e, UpdateFailed) and reason not in PASSING:
                    raise
                self._tell(reason, str(e), told)
                attempt += 1
                held_s = e.wait_s if isinstance(e, OnHold) else 0.0
                pause_s = max(held_s, self._pause_s(attempt, reason))
                if pause_s >= left_s():
                    raise UpdateFailed(reason, f"{e}; tried for {limit_s:g} s") from e
            if hours.sleep(pause_s) or hours.wait_open():
                raise Interrupted(f"{wanted.url}: the download was asked to end")

    def part(self, wanted: Wanted) -> Path:
        """Where a download lies until its bundle is staged."""
        return self._fetcher.part(wanted)

    def forget(self, wanted: Wanted) -> None:
        """Delete a download whose bundle is staged."""
        self._fetcher.forget(wanted)

    def tidy(self, keep: set[str]) -> None:
        """Delete every download but those of these sha256."""
        self._fetcher.tidy(keep)

    def _pause_s(self, attempt: int, reason: Reason) -> float:
        """How long the repository is left alone; longer where it answers, but nothing of use.

        Each such answer may be as long as metadata may be, and the link may be paid by the byte.
        """
        if reason in _WASTEFUL:
            return backoff(attempt, rng=self._rng, longest_s=_LONGEST_WASTE_S)
        return backoff(attempt, rng=self._rng)

    def _mended(self, reason: Reason, message: str) -> None:
        self._events("fetch_mended", message, level="warning", reason=reason.value)

    def _tell(self, reason: Reason, message: str, told: set[Reason]) -> None:
        """Once for each reason; a repository that is down, or plays games, fills no outbox."""
        log.info("repository gives nothing", extra={"reason": reason.value, "error": message})
        if reason not in told:
            told.add(reason)
            self._events("repository_refused", message, level="warning", reason=reason.value)
