"""Files: what an operator hands over for a series of rounds, kept under its sha256."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from edgekit import bundle, storage
from edgekit.errors import IntegrityError, StorageError
from edgekit.fleet.store import UnknownId

# SHA256.SUFFIX: a build tells the kind of a file by its suffix.
NAME = re.compile(r"([0-9a-f]{64})\.[a-z0-9]{1,12}")
MAX_FILE_BYTES = 4 << 30
_INCOMING = ".incoming-"


class Files:
    """A folder of files named `SHA256.SUFFIX`, each whole or absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left_over in folder.glob(f"{_INCOMING}*"):
                left_over.unlink()
        except OSError as e:
            raise StorageError(f"{folder} cannot be used: {e.strerror}") from e

    def incoming(self) -> Path:
        """A new path for a file that is being received."""
        return self._folder / f"{_INCOMING}{secrets.token_hex(8)}"

    def keep(self, received: Path, name: str) -> Path:
        """Take a received file over under its name, if its sha256 is the one in the name.

        The file is gone from `received` afterwards, whatever happens.
        """
        try:
            match = NAME.fullmatch(name)
            if match is None:
                raise UnknownId(f"{name!r} is not SHA256.SUFFIX")
            if bundle.describe(received).sha256 != match[1]:
                raise IntegrityError(f"{name}: the content has another sha256", hint="send again")
            os.replace(received, self._folder / name)
            storage.sync_folder(self._folder)
            return self._folder / name
        finally:
            received.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """The file of a name."""
        path = self._folder / name
        if NAME.fullmatch(name) is None or not path.is_file():
            raise UnknownId(f"the coordinator has no file {name}", hint="send it first")
        return path
