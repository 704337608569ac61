"""Hands: what commands may reach of the daemon, and nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgekit.clock import Clock
from edgekit.messages import ModelState
from edgekit_runtime.config import Config
from edgekit_runtime.control.logring import LogRing
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.repository import Repository
from edgekit_runtime.slots import Request

# Waits so many seconds, or less; whether to stop: the limit is reached, or the daemon ends.
Wait = Callable[[float], bool]


class Updates(Protocol):
    """The updater, as commands use it; from any thread, and at once."""

    def states(self) -> dict[str, ModelState]:
        """Where each model is."""
        ...

    def rollback(self, model: str) -> None:
        """Ask for the version before, raising `UsageError` where there is none."""
        ...

    def cancel(self, model: str) -> None:
        """Ask for the end of the update, raising `UsageError` where none is under way."""
        ...

    def withdraw(self, model: str, request: Request) -> bool:
        """Ask for it no more; `False` where it was begun already, and may yet be done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hands:
    """What commands may reach.

    Attributes:
        config: as it was read at start-up.
        reread: reads its file again, raising `ConfigError`; gives `None` where there is no file.
        boot: of this start.
        ring: the daemon's own log lines.
        models: what serves.
        repository: takes models out and in again.
        updates: the updater.
        set_interval: seconds between two telemetry messages from now on.
        is_linked: whether the broker is connected.
        certificate_expires_ms: of the device's identity, as it is now; `None` without one.
        on_loop: has something called on the loop that serves.
        clock: for everything that takes or tells time.
    """

    config: Config
    reread: Callable[[], Config | None]
    boot: str
    ring: LogRing
    models: Models
    repository: Repository
    updates: Updates
    set_interval: Callable[[float], None]
    is_linked: Callable[[], bool]
    certificate_expires_ms: Callable[[], int | None]
    on_loop: Callable[[Callable[[], None]], object]
    clock: Clock
