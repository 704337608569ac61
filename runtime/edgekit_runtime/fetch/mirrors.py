"""Mirrors: which of several servers is asked next, as a rule over what they did so far.

The one that delivered last is asked first and kept when its connection breaks; one that fails makes
way for the next at once, and is asked again when its wait is over. One that refuses for good is not
asked again in this download, and the download fails when all have refused. One whose whole file was
wrong is on hold for hours, and a download in which nobody else is left ends until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from edgekit_runtime.fetch import address
from edgekit_runtime.fetch.address import Place
from edgekit_runtime.fetch.retry import FIRST_WAIT_S, backoff
from edgekit_runtime.update import Reason, UpdateFailed


class Mirror:
    """One address of a file.

    Attributes:
        url: where it is.
        base: whose it is.
        failures: in a row, without a byte that was new.
        ready_s: before then it is not asked again.
        is_on_hold: whether that is because of a wrong file.
        refused: why it is not asked any more.
    """

    def __init__(self, place: Place) -> None:
        self.url = place.url
        self.base = place.base
        self.failures = 0
        self.ready_s = 0.0
        self.is_on_hold = False
        self.refused: UpdateFailed | None = None


class Mirrors:
    """The mirrors of one file.

    Args:
        places: in order of preference.
        best: origin that delivered last, in whatever download; it goes first.
        rng: spreads the attempts of many devices.
    """

    def __init__(self, places: Sequence[Place], *, best: str | None, rng: Random) -> None:
        self._mirrors = [Mirror(place) for place in places]
        self._mirrors.sort(key=lambda mirror: address.origin(mirror.url) != best)
        self._rng = rng

    def __iter__(self) -> Iterator[Mirror]:
        return iter(self._mirrors)

    def held_s(self, now_s: float) -> float:
        """Seconds until the first one may be asked, where all that are left are on hold; else 0."""
        willing = self._willing()
        if not willing or not all(mirror.is_on_hold for mirror in willing):
            return 0.0
        return max(0.0, min(mirror.ready_s for mirror in willing) - now_s)

    def next(self, now_s: float) -> Mirror:
        """Whom to ask, at its `ready_s`; raises `UpdateFailed` where every mirror has refused."""
        willing = self._willing()
        if not willing:
            raise self._refusal()
        # A mirror whose connection broke is worth a moment's wait: it has the file.
        return min(
            willing,
            key=lambda m: max(now_s, m.ready_s - (0.0 if m.failures else FIRST_WAIT_S)),
        )

    def has_others(self, mirror: Mirror) -> bool:
        """Whether somebody else can be asked."""
        return any(m is not mirror and not m.is_on_hold for m in self._willing())

    def broke(self, mirror: Mirror, *, now_s: float) -> None:
        """It delivered, and then the connection ended: it is the first to be asked again."""
        mirror.failures = 0
        mirror.is_on_hold = False
        mirror.ready_s = now_s + backoff(0, rng=self._rng)
        self._mirrors.sort(key=lambda m: m is not mirror)

    def failed(self, mirror: Mirror, *, now_s: float, retry_after_s: float = 0.0) -> None:
        """It delivered nothing, or far too slowly."""
        mirror.failures += 1
        mirror.is_on_hold = False
        mirror.ready_s = now_s + retry_after_s + backoff(mirror.failures, rng=self._rng)

    def refused(self, mirror: Mirror, why: UpdateFailed) -> None:
        """What it answers will not pass."""
        mirror.refused = why

    def hold(self, mirror: Mirror, *, now_s: float, for_s: float) -> None:
        """What came from it is whole and not the announced file."""
        mirror.is_on_hold = True
        mirror.ready_s = now_s + for_s

    def _willing(self) -> list[Mirror]:
        return [mirror for mirror in self._mirrors if mirror.refused is None]

    def _refusal(self) -> UpdateFailed:
        """Why nobody gives it: what the first one says, and rather what may pass."""
        refused = [mirror.refused for mirror in self._mirrors if mirror.refused is not None]
        return min(refused, key=lambda why: why.reason is Reason.FETCH_EXHAUSTED)
