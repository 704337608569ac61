"""What was compiled on this device, on disk: whole entries under the key of what they hold for.

An entry is a folder that came into its place by one rename, with `entry.json` in it: what it holds
for, and the digest of each file. One that says otherwise than it is asked, or whose files differ,
is removed and made anew. Starts that never ended well are counted on disk too, so that a compiler
that takes the whole board down is not started for ever.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekit import storage
from edgekit.errors import StorageError
from edgekit.manifest import Artifact, Sha256, canonical
from edgekit.structs import Strict

log = logging.getLogger(__name__)

ENTRY = "entry.json"
_WORK, _STARTS = "work-", "starts-"
_KEY_CHARS = 32

Record = TypeVar("Record", bound=Strict)


class HoldsFor(Strict, frozen=True, kw_only=True):
    """What a compiled artefact holds for; its digest is the key.

    Attributes:
        device: devices, drivers and libraries beside the engine.
        options: of the variant.
    """

    artifact_sha256: Sha256
    engine: str
    engine_version: str
    device: dict[str, str]
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """One name for all of it, in hexadecimal."""
        return hashlib.sha256(canonical(self)).hexdigest()[:_KEY_CHARS]


class Entry(Strict, frozen=True, kw_only=True):
    """What `entry.json` says.

    Attributes:
        files: everything that was made, by its path in the folder.
        took_s: what making it took.
        artifact_bytes: size of the artefact that it was made of.
    """

    holds_for: HoldsFor
    files: dict[str, Artifact]
    took_s: float
    artifact_bytes: int

    @property
    def size_bytes(self) -> int:
        """What the files take on disk."""
        return sum(file.size_bytes for file in self.files.values())


class Starts(Strict, frozen=True, kw_only=True):
    """How often a compilation was started without ending well.

    Attributes:
        reason: why the last one did not.
    """

    count: int
    reason: str


class Store:
    """Compiled artefacts below one folder. Entries of several processes do not disturb each other.

    Args:
        folder: made where it is missing.
        limit_bytes: what all entries together may take; those not used for longest go first.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        storage.make_folder(folder)
        self._remove_leftovers()

    def find(self, holds_for: HoldsFor) -> Path | None:
        """The folder of what was compiled for this; a damaged or foreign one is removed."""
        folder = self._folder / holds_for.key
        if not folder.is_dir():
            return None
        entry = _read(folder / ENTRY, Entry)
        problem = (
            "entry.json is not readable" if entry is None else _problem(entry, holds_for, folder)
        )
        if problem is not None:
            log.warning("compiled again", extra={"folder": str(folder), "reason": problem})
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder)
        return folder

    def remove(self, folder: Path) -> None:
        """Remove an entry that `find` gave."""
        shutil.rmtree(folder, ignore_errors=True)

    def work_folder(self) -> Path:
        """An empty folder to compile in, on the same disk.

        Raises:
            StorageError: it cannot be made.
        """
        folder = self._folder / f"{_WORK}{os.getpid()}-{secrets.token_hex(4)}"
        storage.make_folder(folder)
        return folder

    def keep(self, work: Path, holds_for: HoldsFor, *, took_s: float, artifact_bytes: int) -> Path:
        """Put what lies in a work folder into its place; the limit is held thereafter.

        Raises:
            StorageError: there is nothing in it, or it cannot be written.
        """
        files = {
            str(path.relative_to(work)): _described(path)
            for path in sorted(work.rglob("*"))
            if path.is_file()
        }
        if not any(file.size_bytes for file in files.values()):
            raise StorageError("the compiler wrote nothing")
        entry = Entry(
            holds_for=holds_for, files=files, took_s=took_s, artifact_bytes=artifact_bytes
        )
        storage.write(work / ENTRY, canonical(entry))
        target = self._folder / holds_for.key
        try:
            work.rename(target)
        except OSError as e:
            # Another process was faster with the same.
            shutil.rmtree(work, ignore_errors=True)
            if self.find(holds_for) is None:
                raise StorageError(f"{target} cannot be written: {e.strerror}") from e
        storage.sync_folder(self._folder)
        self.starts_file(holds_for.key).unlink(missing_ok=True)
        self._hold_limit(newest=target)
        return target

    def starts(self, key: str) -> Starts:
        """How often this was started without ending well."""
        return _read(self.starts_file(key), Starts) or Starts(count=0, reason="")

    def note_start(self, key: str) -> None:
        """Count a start, before it is made."""
        count = self.starts(key).count + 1
        self._write_starts(key, Starts(count=count, reason="it never came to an end"))

    def note_failure(self, key: str, reason: str) -> None:
        """Remember why the last start did not end well."""
        self._write_starts(key, Starts(count=self.starts(key).count, reason=reason))

    def take_back_start(self, key: str) -> None:
        """The last start was ended by its owner, and says nothing of the compiler."""
        starts = self.starts(key)
        self._write_starts(key, msgspec.structs.replace(starts, count=max(starts.count - 1, 0)))

    def forget_starts(self, key: str) -> None:
        """Let a compilation be started as if it never had been."""
        self.starts_file(key).unlink(missing_ok=True)

    def expected_s(self, holds_for: HoldsFor, *, artifact_bytes: int) -> float | None:
        """What a compilation may take, by an earlier one here of the same engine; None without.

        One of the same artefact (another driver, another version) tells it best, else the one whose
        artefact is nearest in size, in proportion to it.
        """
        known = [e for e in self._entries().values() if e.holds_for.engine == holds_for.engine]
        same = [e for e in known if e.holds_for.artifact_sha256 == holds_for.artifact_sha256]
        if same:
            return max(entry.took_s for entry in same)
        if not known:
            return None
        near = min(known, key=lambda entry: abs(entry.artifact_bytes - artifact_bytes))
        return near.took_s * artifact_bytes / max(near.artifact_bytes, 1)

    def _entries(self) -> dict[Path, Entry]:
        return entries(self._folder)

    def _hold_limit(self, *, newest: Path) -> None:
        entries = self._entries()
        total = sum(entry.size_bytes for entry in entries.values())
        for folder in sorted(entries, key=lambda folder: folder.stat().st_mtime):
            if total <= self._limit_bytes:
                break
            if folder != newest:
                total -= entries[folder].size_bytes
                log.info("compiled artefact removed", extra={"folder": str(folder)})
                shutil.rmtree(folder, ignore_errors=True)

    def _write_starts(self, key: str, starts: Starts) -> None:
        storage.write(self.starts_file(key), canonical(starts))

    def starts_file(self, key: str) -> Path:
        """Where starts that did not end well are counted."""
        return self._folder / f"{_STARTS}{key}.json"

    def _remove_leftovers(self) -> None:
        for path in self._folder.glob(f"{_WORK}*"):
            process = path.name.removeprefix(_WORK).partition("-")[0]
            if Path(f"/proc/{process}").is_dir():
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def entries(folder: Path) -> dict[Path, Entry]:
    """What was compiled below a folder, as its records say; the files are not looked at."""
    found = ((path.parent, _read(path, Entry)) for path in folder.glob(f"*/{ENTRY}"))
    return {place: entry for place, entry in found if entry is not None}


def _problem(entry: Entry, holds_for: HoldsFor, folder: Path) -> str | None:
    if entry.holds_for != holds_for:
        return "it holds for something else"
    for name, file in entry.files.items():
        try:
            found = _described(folder / name)
        except StorageError as e:
            return e.message
        if found != file:
            return f"{name} is not what was written"
    return None


def _described(path: Path) -> Artifact:
    digest, size_bytes = hashlib.sha256(), 0
    for chunk in storage.chunks(path):
        digest.update(chunk)
        size_bytes += len(chunk)
    return Artifact(sha256=digest.hexdigest(), size_bytes=size_bytes)


def _read(path: Path, kind: type[Record]) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
