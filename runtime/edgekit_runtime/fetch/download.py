"""Download: one file, from whichever of its mirrors delivers, until it is whole and right."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http.client import HTTPException
from random import Random
from urllib.parse import SplitResult

from edgekit_runtime.fetch import address
from edgekit_runtime.fetch.answer import Passing
from edgekit_runtime.fetch.attempt import Attempt, TooSlow
from edgekit_runtime.fetch.mirrors import Mirror, Mirrors
from edgekit_runtime.fetch.part import Part
from edgekit_runtime.fetch.patience import Interrupted, Patience
from edgekit_runtime.fetch.retry import retry_after
from edgekit_runtime.update import Reason, UpdateFailed

log = logging.getLogger(__name__)

_UNKNOWN = ""


class Download:
    """The life of one download.

    Args:
        part: the file.
        what: names it in messages.
        urls: where it can be had, in order.
        best: origin that delivered last; it is asked first.
        attempt: asks one of them.
        patience: how long it may take.
        rng: spreads the attempts of many devices.

    Attributes:
        best: origin that delivered last.
    """

    def __init__(
        self,
        part: Part,
        *,
        what: str,
        urls: Sequence[SplitResult],
        best: str | None,
        attempt: Attempt,
        patience: Patience,
        rng: Random,
    ) -> None:
        self.best = best
        self._part = part
        self._what = what
        self._attempt = attempt
        self._patience = patience
        self._mirrors = Mirrors(urls, best=best, rng=rng)
        # Who sent what is here; whatever was here before, nobody knows.
        self._sources = {_UNKNOWN} if part.held_bytes() else set()
        self._unmixed = False

    def run(self) -> None:
        """Fetch what is missing; the file is whole and the announced one when this returns.

        Raises:
            UpdateFailed: no mirror has it, or the time is over.
            Interrupted: somebody asked the download to end.
            StorageError: the disk takes no more.
        """
        self._part.begin()
        asked: Mirror | None = None
        while not self._is_done(asked):
            self._patience.wait_for_window()
            asked = self._mirrors.next(self._patience.now_s())
            self._patience.pause(max(0.0, asked.ready_s - self._patience.now_s()))
            self._ask(asked)

    def _ask(self, mirror: Mirror) -> None:
        where = address.origin(mirror.url)
        if self._unmixed and self._sources - {where}:
            self._clear()
        before = self._part.held_bytes()
        try:
            self._attempt.run(mirror.url, may_be_slow=not self._mirrors.has_others(mirror))
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
            self.best = where
        if self._part.held_bytes() > before:
            self._sources.add(where)

    def _is_done(self, mirror: Mirror | None) -> bool:
        """Whether the file is here; one that is wrong is thrown away, and its mirror blamed.

        Where several mirrors had a part in it, none of them is: from then on each has to give the
        whole file, so that one that lies spoils nothing that the others give.
        """
        if self._part.held_bytes() != self._part.size_bytes:
            return False
        if self._part.is_right():
            return True
        why = UpdateFailed(Reason.WRONG_SHA256, f"{self._what}: the file is not the announced one")
        if mirror is not None and self._sources == {address.origin(mirror.url)}:
            self._note(mirror, why)
            self._mirrors.wrong_file(mirror, why, now_s=self._patience.now_s())
        else:
            self._unmixed = True
        self._clear()
        return False

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
