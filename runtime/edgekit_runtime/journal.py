"""Journal: the records of all models; each is on disk before anybody can see it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from edgekit.errors import StorageError
from edgekit_runtime.slots import Slots
from edgekit_runtime.update import Record

log = logging.getLogger(__name__)


class Journal:
    """What the device knows of each model.

    Args:
        slots: where records lie.
        changed: called after each change that the fleet should see.
    """

    def __init__(self, slots: Slots, *, changed: Callable[[], None]) -> None:
        self._slots = slots
        self._changed = changed
        self._records: dict[str, Record] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(dict(self._records)))

    def items(self) -> list[tuple[str, Record]]:
        """Every model with its record, by name; from any thread."""
        return sorted(dict(self._records).items())

    def read(self, model: str) -> Record:
        """Take a record from the disk, at start-up."""
        self._records[model] = self._slots.read(model)
        return self._records[model]

    def record(self, model: str) -> Record:
        """What is known of a model."""
        return self._records.get(model, Record())

    def write(self, model: str, record: Record) -> None:
        """Disk first: what the memory says is durable. Raises `StorageError`."""
        self._slots.write(model, record)
        self.hold(model, record)

    def write_if_possible(self, model: str, record: Record) -> bool:
        """For what must be said, and acted on, also by a disk that takes nothing any more.

        Returns whether it is on disk.
        """
        try:
            self._slots.write(model, record)
            is_durable = True
        except StorageError as e:
            log.error("record is not on disk", extra={"model": model, "error": str(e)})
            is_durable = False
        self.hold(model, record)
        return is_durable

    def hold(self, model: str, record: Record) -> None:
        """Keep a record in memory alone: the daemon's next start knows nothing of it."""
        self._records[model] = record
        log.info("update state", extra={"model": model, "state": record.state.value})
        self._changed()
