"""Requests: what people want of the updater: to go back to a version, or to end an update.

Whoever stands before the board leaves a file (`Slots.ask`), which outlives the daemon. What a
command of the fleet asks for is in memory alone: it ends with the command, at the latest with the
daemon. Promise: what was withdrawn before it was begun is never done.
"""

from __future__ import annotations

import threading

from edgekit_runtime.slots import Request, Slots


class Requests:
    """What is wanted and not done yet. Any thread may ask, the update thread answers.

    Args:
        slots: where requests lie that were left on disk.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._asked: set[tuple[str, Request]] = set()
        self._begun: set[tuple[str, Request]] = set()

    def ask(self, model: str, request: Request) -> None:
        """Want this of a model, until it is answered or withdrawn, or the daemon ends."""
        with self._lock:
            self._asked.add((model, request))

    def withdraw(self, model: str, request: Request) -> bool:
        """Want it no more; `False` where it was begun, and may yet be done.

        What somebody left on disk stays wanted.
        """
        with self._lock:
            self._asked.discard((model, request))
            return (model, request) not in self._begun

    def asked(self, request: Request) -> list[str]:
        """Models of which somebody wants this."""
        with self._lock:
            here = {model for model, wanted in self._asked if wanted == request}
        return sorted(here.union(self._slots.asked(request)))

    @property
    def is_any(self) -> bool:
        """Whether anything is wanted."""
        return bool(self._asked or self._slots.asked("rollback") or self._slots.asked("cancel"))

    def begin(self, model: str, request: Request) -> bool:
        """Take one up, which cannot be withdrawn from now on; `False` where it was before."""
        with self._lock:
            if (model, request) not in self._asked and model not in self._slots.asked(request):
                return False
            self._begun.add((model, request))
            return True

    def answered(self, model: str, request: Request) -> None:
        """It is done, or cannot be; raises `StorageError` where the disk does not let it go."""
        with self._lock:
            self._begun.discard((model, request))
            self._asked.discard((model, request))
        if model in self._slots.asked(request):
            self._slots.answered(model, request)
