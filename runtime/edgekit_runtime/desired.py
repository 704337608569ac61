"""Desired: what the fleet wants of this device, on disk, and never an older wish after a newer."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec

from edgekit import storage
from edgekit.messages import Desired, Wanted

log = logging.getLogger(__name__)

FILE = "desired.json"


class DesiredState:
    """The newest desired state. Any thread may offer one, one thread takes it.

    Args:
        folder: the state folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._lock = threading.Lock()
        self._taken = self._read()
        self._floor = 0
        self._offered: Desired | None = None

    @property
    def serial(self) -> int:
        """Of what was last taken; 0 for nothing yet."""
        return max(self._floor, self._taken.serial if self._taken else 0)

    @property
    def models(self) -> dict[str, Wanted]:
        """What was last taken. A model that is not named stays as it is."""
        return self._taken.models if self._taken else {}

    @property
    def offered(self) -> Desired | None:
        """What waits to be taken."""
        return self._offered

    @property
    def is_offered(self) -> bool:
        """Whether something waits to be taken."""
        return self._offered is not None

    def remember(self, serial: int) -> None:
        """Take note of a serial that was taken once, as other files say.

        Else a broker could hand an older wish in where the file of this one was lost.
        """
        self._floor = max(self._floor, serial)

    def offer(self, desired: Desired) -> bool:
        """Hand over a desired state; one whose serial is lower, or known, is ignored."""
        with self._lock:
            newest = self._offered or self._taken
            lowest = max(self._floor, newest.serial if newest else 0)
            is_known = newest is not None and desired.serial == newest.serial
            if desired.serial < lowest or is_known:
                log.info("desired state ignored", extra={"serial": desired.serial})
                return False
            self._offered = desired
            return True

    def take(self) -> bool:
        """Make what was offered durable and current; `False` where nothing was.

        Raises:
            StorageError: it cannot be written; it stays offered.
        """
        offered = self._offered
        if offered is None:
            return False
        storage.write(self._path, msgspec.json.encode(offered))
        with self._lock:
            self._taken = offered
            if self._offered is offered:
                self._offered = None
        return True

    def _read(self) -> Desired | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Desired)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
            # The broker retains it for us: it comes again with the next connection.
            log.error("desired state is damaged", extra={"path": str(self._path), "error": str(e)})
            return None
