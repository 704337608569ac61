"""Named implementations, imported on first use.

Built-ins are listed by dotted name; others arrive by entry point. Looking entry points up costs
tens of milliseconds, so that happens only for a name that is not built in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from name to `module:attribute`.

    Args:
        noun: what the names name, for messages ("engine", "pass").
        group: the entry-point group where others add theirs.
        builtin: name to `module:attribute`.
    """

    def __init__(self, noun: str, *, group: str, builtin: Mapping[str, str]) -> None:
        self._noun = noun
        self._group = group
        self._builtin = dict(builtin)
        self._loaded: dict[str, T] = {}

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted({*self._builtin, *(entry.name for entry in _entry_points(self._group))})

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self.names()

    def get(self, name: str) -> T:
        """The implementation called `name`, raising `UsageError` for an unknown one."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> T:
        if name in self._builtin:
            return cast("T", load(self._builtin[name]))
        for entry in _entry_points(self._group):
            if entry.name == name:
                return cast("T", entry.load())
        raise UsageError(
            f"there is no {self._noun} called {name!r}", hint=f"known: {', '.join(self.names())}"
        )


def _entry_points(group: str) -> Iterable[EntryPoint]:
    # Imported here: it costs 20 ms, and the command line needs only `load`.
    from importlib.metadata import entry_points

    return entry_points(group=group)


def load(target: str) -> object:
    """Import `module:attribute`."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
