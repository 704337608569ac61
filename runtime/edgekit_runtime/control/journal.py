"""Journal: the command that was taken last, on disk before it is acted on, with its result after.

    STATE/commands/latest.json

Promise: after a kill at any moment a command that was begun is known, and is never begun again.
The coordinator sends a device one command at a time and the next only when it has the result, so
that one entry is enough. An unreadable file is begun anew; the boot that each command bears then
keeps old ones out.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edgekit import storage
from edgekit.control import CommandResult
from edgekit.structs import Strict

log = logging.getLogger(__name__)

FOLDER = "commands"
FILE = "latest.json"


class Entry(Strict, frozen=True, kw_only=True):
    """The latest command.

    Attributes:
        counter: of it; 0 where there was none yet.
        result: what it came to; of state `running` from before it is acted on until its end.
    """

    counter: int = 0
    kind: str = ""
    result: CommandResult | None = None

    @property
    def id(self) -> str | None:
        return self.result.id if self.result else None

    @property
    def is_running(self) -> bool:
        return self.result is not None and self.result.state == "running"


class Journal:
    """The latest entry, in memory and on disk. One thread uses it.

    Args:
        state: the state folder.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / FOLDER / FILE
        self.latest = self._read()

    def write(self, entry: Entry) -> None:
        """Make an entry the latest; it counts even where this raises.

        Raises:
            StorageError: it is not on disk.
        """
        self.latest = entry
        storage.write(self._path, msgspec.json.encode(entry))

    def _read(self) -> Entry:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Entry)
        except FileNotFoundError:
            return Entry()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            log.error("journal begun anew", extra={"path": str(self._path), "error": str(e)})
            return Entry()
