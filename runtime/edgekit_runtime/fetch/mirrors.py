"""Mirrors: which of several servers is asked next, as a rule over what they did so far.

The one that delivered last is asked first and kept when its connection breaks; one that fails makes
way for the next at once, and is asked again when its wait is over. One that refuses for good is not
asked again in this download, and the download fails when all have refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from urllib.parse import SplitResult

from edgekit_runtime.fetch import address
from edgekit_runtime.fetch.retry import FIRST_WAIT_S, backoff
from edgekit_runtime.update import UpdateFailed

MAX_WRONG_FILES = 2


class Mirror:
    """One address of a file.

    Attributes:
        url: where it is.
        failures: in a row, without a byte that was new.
        wrong_files: whole files from here that were not the announced one.
        ready_s: before then it is not asked again.
        refused: why it is not asked any more.
    """

    def __init__(self, url: SplitResult) -> None:
        self.url = url
        self.failures = 0
        self.wrong_files = 0
        self.ready_s = 0.0
        self.refused: UpdateFailed | None = None


class Mirrors:
    """The mirrors of one file.

    Args:
        urls: in order of preference.
        best: origin that delivered last, in whatever download; it goes first.
        rng: spreads the attempts of many devices.
    """

    def __init__(self, urls: Sequence[SplitResult], *, best: str | None, rng: Random) -> None:
        self._mirrors = [Mirror(url) for url in urls]
        self._mirrors.sort(key=lambda mirror: address.origin(mirror.url) != best)
        self._rng = rng

    def next(self, now_s: float) -> Mirror:
        """Whom to ask, at its `ready_s`; raises `UpdateFailed` where every mirror has refused."""
        willing = [mirror for mirror in self._mirrors if mirror.refused is None]
        if not willing:
            raise self._mirrors[0].refused or AssertionError("a file without an address")
        # A mirror whose connection broke is worth a moment's wait: it has the file.
        return min(
            willing,
            key=lambda m: max(now_s, m.ready_s - (0.0 if m.failures else FIRST_WAIT_S)),
        )

    def has_others(self, mirror: Mirror) -> bool:
        """Whether somebody else can be asked."""
        return any(m is not mirror and m.refused is None for m in self._mirrors)

    def broke(self, mirror: Mirror, *, now_s: float) -> None:
        """It delivered, and then the connection ended: it is the first to be asked again."""
        mirror.failures = 0
        mirror.ready_s = now_s + backoff(0, rng=self._rng)
        self._mirrors.sort(key=lambda m: m is not mirror)

    def failed(self, mirror: Mirror, *, now_s: float, retry_after_s: float = 0.0) -> None:
        """It delivered nothing, or far too slowly, or the wrong bytes."""
        mirror.failures += 1
        mirror.ready_s = now_s + retry_after_s + backoff(mirror.failures, rng=self._rng)

    def refused(self, mirror: Mirror, why: UpdateFailed) -> None:
        """What it answers will not pass."""
        mirror.refused = why

    def wrong_file(self, mirror: Mirror, why: UpdateFailed, *, now_s: float) -> None:
        """What came is whole and not the announced file; a link may do that once."""
        mirror.wrong_files += 1
        if mirror.wrong_files >= MAX_WRONG_FILES:
            self.refused(mirror, why)
        else:
            self.failed(mirror, now_s=now_s)
