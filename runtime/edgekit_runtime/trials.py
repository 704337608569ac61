"""Trials: the canaries that are under way, each with the version that is loaded for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit_runtime.live import Live, Loaded, Trial

S = TypeVar("S")


@dataclass(frozen=True)
class Begun(Generic[S]):
    """A trial, what is tried, and what served when it began."""

    trial: Trial[S]
    loaded: Loaded[S]
    old: S | None


class Trials(Generic[S]):
    """At most one trial for each model. Owned by the update thread."""

    def __init__(self, live: Live[S]) -> None:
        self._live = live
        self._begun: dict[str, Begun[S]] = {}

    def begin(self, model: str, loaded: Loaded[S], *, spent_s: float) -> None:
        """Compare a loaded version with the one that serves.

        Args:
            model: its name.
            loaded: closed where the comparison cannot begin.
            spent_s: how much of the time limit is over, in seconds.
        """
        try:
            trial = self._live.try_out(model, loaded, spent_s=spent_s)
        except BaseException:
            self._live.discard(loaded)
            raise
        self._begun[model] = Begun(trial, loaded, self._live.present(model))

    def go_on(self, model: str) -> None:
        """Compare with what serves now, where that was closed and opened anew meanwhile."""
        begun, old = self._begun.pop(model), self._live.present(model)
        assert old is not None  # `is_past` said so
        try:
            trial = begun.trial.again(old)
        except BaseException:
            self._live.discard(begun.loaded)
            raise
        self._begun[model] = Begun(trial, begun.loaded, old)

    def is_past(self, model: str) -> bool:
        """Whether another object serves by now than the one that a trial compares with."""
        present = self._live.present(model)
        return present is not None and present is not self._begun[model].old

    def __iter__(self) -> Iterator[tuple[str, Trial[S]]]:
        return iter([(model, begun.trial) for model, begun in self._begun.items()])

    def find(self, model: str) -> Trial[S] | None:
        """The trial of a model."""
        begun = self._begun.get(model)
        return begun.trial if begun else None

    def take(self, model: str) -> Loaded[S]:
        """End a trial and hand out what was tried, open still."""
        begun = self._begun.pop(model)
        begun.trial.close()
        return begun.loaded

    def drop(self, model: str) -> None:
        """End a trial, if there is one, and close what was tried."""
        if model in self._begun:
            self._live.discard(self.take(model))

    def close(self) -> None:
        """End every trial."""
        for model in list(self._begun):
            self.drop(model)
