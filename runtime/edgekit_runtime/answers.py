"""Answers: what this device said in each round, on disk until the round closes.

Promise: a round that was answered is not answered anew, also after a restart: what was said once is
said again, byte for byte, where the coordinator has not heard it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edgekit import storage
from edgekit.structs import Strict

log = logging.getLogger(__name__)

_SUFFIX = ".answer"


class Answer(Strict, frozen=True, kw_only=True):
    """One answer.

    Attributes:
        round: id of the round.
        closes_at: after this nobody counts it; milliseconds since 1970 UTC.
        payload: an update's frame, or a refusal as JSON.
    """

    round: str
    closes_at: int
    payload: bytes


class Answers:
    """The answers below one folder, one file each.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        storage.make_folder(folder)
        self._folder = folder
        for left in folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def find(self, round_id: str) -> Answer | None:
        """What was said in this round; `None` where nothing was, or it can no longer be read."""
        return _read(self._path(round_id))

    def keep(self, answer: Answer) -> None:
        """Make an answer durable, raising `StorageError` where the disk refuses."""
        storage.write(self._path(answer.round), msgspec.msgpack.encode(answer))

    def forget(self, round_id: str) -> None:
        """The round is over."""
        self._path(round_id).unlink(missing_ok=True)

    def prune(self, *, now_ms: int) -> None:
        """Delete every answer that nobody counts any more."""
        for path in self._folder.glob(f"*{_SUFFIX}"):
            answer = _read(path)
            if answer is None or answer.closes_at <= now_ms:
                path.unlink(missing_ok=True)

    def _path(self, round_id: str) -> Path:
        return self._folder / f"{round_id}{_SUFFIX}"


def _read(path: Path) -> Answer | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Answer)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as e:
        log.error("answer is damaged", extra={"path": str(path), "error": str(e)})
        return None
