"""Slots: two places on disk for each model, so that a new bundle never touches the one that serves.

    STATE/models/NAME/state.json    the record (`update.Record`), replaced whole
    STATE/models/NAME/settled.json  what it was with nothing on trial, should it be lost
    STATE/models/NAME/a, b          unpacked bundles; each appears whole or not at all
    STATE/requests/NAME.rollback    somebody wants the previous version back
    STATE/requests/NAME.cancel      somebody wants the update under way to end
    STATE/stopped                   the daemon ended in good order; gone while it runs

Promise: after a kill at any moment the record can be read and names only slots that are whole. One
that a failing disk made unreadable is taken from its settled copy: what is confirmed serves, what
was on trial is tried anew, and what was given up is not. The copy lies beside the slots, not in
them, where a file that the manifest does not list would make the bundle invalid.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from edgekit import storage
from edgekit.bundle import Bundle
from edgekit.errors import BundleError, StorageError
from edgekit.manifest import Version
from edgekit_runtime.update import Installed, Record, SlotName, settled

log = logging.getLogger(__name__)

RECORD = "state.json"
SETTLED = "settled.json"
STOPPED = "stopped"
SLOTS: tuple[SlotName, SlotName] = ("a", "b")
_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}\Z"

Request = Literal["rollback", "cancel"]


class Slots:
    """The slots of every model below a state folder."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._models = state / "models"
        self._requests = state / "requests"

    def names(self) -> list[str]:
        """Every model that was ever installed or wanted here, sorted."""
        if not self._models.is_dir():
            return []
        return sorted(
            path.name
            for path in self._models.iterdir()
            if path.is_dir() and re.match(_NAME, path.name)
        )

    def folder(self, model: str, slot: SlotName) -> Path:
        """Where the bundle in a slot lies."""
        return self._models / model / slot

    def size(self, model: str, slot: SlotName) -> int:
        """Bytes of the files that lie in a slot; 0 for an empty one."""
        folder = self.folder(model, slot)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def read(self, model: str) -> Record:
        """The record of a model; an empty one where there is none yet.

        One that a failing disk made unreadable is its settled copy; where that is lost as well, it
        is rebuilt from the slots that still open.
        """
        return self._decoded(model) or self._settled(model) or self._rebuilt(model)

    def write(self, model: str, record: Record) -> None:
        """Make a record durable; it is on disk when this returns.

        Its settled copy comes first, so that it never names a slot that is emptied after this.
        """
        folder = self._models / model
        storage.make_folder(folder)
        if self._settled(model) != (kept := settled(record)):
            storage.write(folder / SETTLED, msgspec.json.encode(kept))
        storage.write(folder / RECORD, msgspec.json.encode(record))

    def clear(self, model: str, slot: SlotName) -> None:
        """Empty a slot that no record names any more."""
        shutil.rmtree(self.folder(model, slot), ignore_errors=True)

    def clear_unnamed(self, model: str, record: Record) -> None:
        """Empty every slot that a model's record does not name."""
        for slot in SLOTS:
            if slot not in record.slots:
                self.clear(model, slot)

    def unpack(self, model: str, bundle: Bundle) -> Path:
        """Unpack a bundle beside the slots of its model, whole or not at all."""
        return bundle.unpack(self._models / model / f".{secrets.token_hex(4)}.tmp")

    def give_up(self, unpacked: Path) -> None:
        """Remove an unpacked bundle that is not going to a slot."""
        shutil.rmtree(unpacked, ignore_errors=True)

    def put(self, model: str, slot: SlotName, unpacked: Path) -> None:
        """Let an unpacked bundle take an empty slot; raises `StorageError`."""
        folder = self.folder(model, slot)
        try:
            os.rename(unpacked, folder)
            storage.sync_folder(folder.parent)
        except OSError as e:
            self.give_up(unpacked)
            raise StorageError(f"{folder} cannot be filled: {e.strerror}") from e

    def install(self, model: str, slot: SlotName, bundle: Bundle) -> None:
        """Unpack a bundle into an empty slot."""
        self.put(model, slot, self.unpack(model, bundle))

    def tidy(self) -> None:
        """Remove what a kill left behind: temporary files, and slots that no record names.

        A disk that cannot be written keeps them; what serves does not need that room. The folder
        of requests is made here, so that it belongs to the daemon whoever asks first.
        """
        with suppress(StorageError):
            storage.make_folder(self._requests)
        models = self.names()
        for folder in (self._state, self._requests, *(self._models / model for model in models)):
            for path in folder.glob(".*.tmp"):
                _remove(path)
        for model in models:
            record = self._decoded(model)
            # What cannot be read names nothing, and may be all that still says what to serve.
            if record is not None:
                self.clear_unnamed(model, record)

    def ask(self, model: str, request: Request) -> None:
        """Leave word of what somebody wants; the daemon takes it up, now or at its next start."""
        storage.write(self._requests / f"{model}.{request}", b"")

    def asked(self, request: Request) -> list[str]:
        """Models of which somebody wants this."""
        found = self._requests.glob(f"[a-z0-9]*.{request}")
        return sorted(path.name.removesuffix(f".{request}") for path in found)

    def answered(self, model: str, request: Request) -> None:
        """Take a request away; it is served, or cannot be."""
        try:
            (self._requests / f"{model}.{request}").unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"a request cannot be taken away: {e.strerror}") from e

    def note_stop(self) -> None:
        """Leave word that the daemon ended in good order; the last that it does."""
        storage.write(self._state / STOPPED, b"")

    def take_stop(self) -> bool:
        """Whether the daemon ended in good order; the word is gone then, and counts once.

        Where it cannot be taken away for good it is not believed: it would be there after a kill.
        """
        try:
            (self._state / STOPPED).unlink()
            storage.sync_folder(self._state)
        except FileNotFoundError:
            return False
        except OSError as e:
            log.warning("word of the last stop stays", extra={"error": e.strerror})
            return False
        return True

    def _decoded(self, model: str) -> Record | None:
        """The record as it is on disk; `None` where it cannot be read."""
        path = self._models / model / RECORD
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError as e:
            # It is written before any slot: one without it was lost.
            if not any(self.folder(model, slot).exists() for slot in SLOTS):
                return Record()
            log.error("record is lost", extra={"path": str(path), "error": e.strerror})
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
            log.error("record cannot be read", extra={"path": str(path), "error": str(e)})
            return None

    def _settled(self, model: str) -> Record | None:
        """The settled copy of the record; `None` where there is none that can be read."""
        path = self._models / model / SETTLED
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
            log.error("record's copy cannot be read", extra={"path": str(path), "error": str(e)})
            return None

    def _rebuilt(self, model: str) -> Record:
        held: dict[SlotName, Installed] = {}
        for slot in SLOTS:
            found = self._look(self.folder(model, slot))
            if found is not None:
                held[slot] = found
        order = sorted(held, key=lambda slot: Version(held[slot].version), reverse=True)
        return Record(
            slots=held,
            active=order[0] if order else None,
            previous=order[1] if len(order) > 1 else None,
        )

    def _look(self, folder: Path) -> Installed | None:
        try:
            with Bundle.open(folder) as bundle:
                return Installed(version=bundle.manifest.version, digest=bundle.digest)
        except BundleError as e:
            log.warning("slot cannot be opened", extra={"slot": str(folder), "error": str(e)})
            return None


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as e:
        log.warning("not removed", extra={"path": str(path), "error": e.strerror})
