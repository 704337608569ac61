"""Download: one file, from whichever of its mirrors delivers, until it is whole and right."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http.client import HTTPException
from random import Random

from edgekit_runtime.fetch import address
from edgekit_runtime.fetch.address import Place
from edgekit_runtime.fetch.allowance import Allowance
from edgekit_runtime.fetch.answer import Passing
from edgekit_runtime.fetch.attempt import Attempt, TooSlow
from edgekit_runtime.fetch.mirrors import Mirror, Mirrors
from edgekit_runtime.fetch.part import Part
from edgekit_runtime.fetch.patience import Interrupted, Patience
from edgekit_runtime.fetch.retry import retry_after
from edgekit_runtime.update import Reason, UpdateFailed

log = logging.getLogger(__name__)

_UNKNOWN = ""


class OnHold(UpdateFailed):
    """Whoever could be asked sent a wrong file a short time ago.

    Args:
        wait_s: until the first of them may be asked again, in seconds.
    """

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(Reason.WRONG_SHA256, message)
        self.wait_s = wait_s


class Download:
    """The life of one download.

    Args:
        part: the file.
        what: names it in messages.
        places: where it can be had, in order.
        best: origin that delivered last; it is asked first.
        attempt: asks one of them.
        allowance: says who is left alone for a wrong file; `None` where there is another way to the
            bundle, and who sends a wrong file is only not asked for this one again.
        patience: how long it may take.
        rng: spreads the attempts of many devices.

    Attributes:
        best: origin that delivered last, `None` where that was worth nothing.
    """

    def __init__(
        self,
        part: Part,
        *,
        what: str,
        places: Sequence[Place],
        best: str | None,
        attempt: Attempt,
        allowance: Allowance | None,
        patience: Patience,
        rng: Random,
    ) -> None:
        self.best = best
        self._part = part
        self._what = what
        self._attempt = attempt
        self._allowance = allowance
        self._patience = patience
        self._mirrors = Mirrors(places, best=best, rng=rng)
        self._hold_again()
        # Who sent what is here; whatever was here before, nobody knows.
        self._sources = {_UNKNOWN} if part.held_bytes() else set()
        self._unmixed = False

    def run(self) -> None:
        """Fetch what is missing; the file is whole and the announced one when this returns.

        Raises:
            OnHold: nobody is asked for hours.
            UpdateFailed: no mirror has it, or the time is over.
            Interrupted: somebody asked the download to end.
            StorageError: the disk takes no more.
        """
        self._part.begin()
        asked: Mirror | None = None
        while not self._is_done(asked):
            self._patience.wait_for_window()
            self._refuse_to_wait_for_hours()
            asked = self._mirrors.next(self._patience.now_s())
            self._patience.pause(max(0.0, asked.ready_s - self._patience.now_s()))
            self._ask(asked)

    def _ask(self, mirror: Mirror) -> None:
        if self._unmixed and self._sources - {mirror.base}:
            self._clear()
        before = self._part.held_bytes()
        try:
            self._attempt.run(
                mirror.url,
                base=mirror.base,
                may_be_slow=not self._mirrors.has_others(mirror),
            )
        except UpdateFailed as e:
            if e.reason is Reason.FETCH_TIMEOUT:
                raise
            self._note(mirror, e)
            self._mirrors.refused(mirror, e)
        except Interrupted:
            raise
        except (HTTPException, Passing, OSError) as e:
            self._note(mirror, e)
            self._may_pass(mirror, e, brought=self._part.held_bytes() - before)
        else:
            self.best = address.origin(mirror.url)
        if self._part.held_bytes() > before:
            self._sources.add(mirror.base)

    def _is_done(self, mirror: Mirror | None) -> bool:
        """Whether the file is here; one that is wrong is thrown away, and its mirror blamed.

        Where several mirrors had a part in it, none of them is: from then on each has to give the
        whole file, so that one that lies spoils nothing that the others give.
        """
        if self._part.held_bytes() != self._part.size_bytes:
            return False
        if self._part.is_right():
            return True
        if mirror is not None and self._sources == {mirror.base}:
            self._blame(mirror)
        else:
            self._unmixed = True
        self._clear()
        return False

    def _blame(self, mirror: Mirror) -> None:
        why = UpdateFailed(Reason.WRONG_SHA256, f"{self._what}: the file is not the announced one")
        self._note(mirror, why)
        self.best = None
        if self._allowance is None:
            self._mirrors.refused(mirror, why)
        else:
            for_s = self._allowance.hold(mirror.base)
            self._mirrors.hold(mirror, now_s=self._patience.now_s(), for_s=for_s)

    def _hold_again(self) -> None:
        """What an earlier download found out holds for this one."""
        for mirror in self._mirrors:
            if self._allowance is not None and (for_s := self._allowance.held_s(mirror.base)):
                self._mirrors.hold(mirror, now_s=self._patience.now_s(), for_s=for_s)

    def _refuse_to_wait_for_hours(self) -> None:
        wait_s = self._mirrors.held_s(self._patience.now_s())
        if wait_s:
            raise OnHold(
                f"{self._what}: what came was not the announced file; it is not asked for again "
                f"within {wait_s / 3600:.1f} h",
                wait_s=wait_s,
            )

    def _clear(self) -> None:
        self._part.clear()
        self._sources.clear()

    def _may_pass(self, mirror: Mirror, error: Exception, *, brought: int) -> None:
        now_s = self._patience.now_s()
        if brought > 0 and not isinstance(error, TooSlow):
            self.best = address.origin(mirror.url)
            self._mirrors.broke(mirror, now_s=now_s)
            return
        wish = error.retry_after if isinstance(error, Passing) else ""
        wait_s = retry_after(wish, now_ms=self._patience.now_ms())
        self._mirrors.failed(mirror, now_s=now_s, retry_after_s=wait_s)

    def _note(self, mirror: Mirror, error: Exception) -> None:
        where = address.origin(mirror.url)
        self._patience.trouble = f"{where}: {str(error) or type(error).__name__}"
        log.info(
            "download interrupted",
            extra={"file": self._what, "at": where, "error": self._patience.trouble},
        )
