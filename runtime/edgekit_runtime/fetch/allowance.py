"""Allowance: what each server may still send for one bundle, whatever becomes of it.

    STATE/fetch/SHA256.spent         what each has sent, and before when it is not asked again

Promise: for one bundle no server makes a device take in more than `TIMES` its size, deltas, wrong
files and repetitions together, and `BESIDE_BYTES` of heads, TLS and bodies that nobody reads,
through any number of starts; and one whose whole file was not the announced one is left alone for
hours. What one server does costs no other one anything. A kill of the daemon hides at most
`STEP_BYTES` of what came.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Annotated

import msgspec

from edgekit import storage
from edgekit.clock import Clock
from edgekit.errors import StorageError
from edgekit.structs import Strict

SUFFIX = ".spent"
TIMES = 3
HOLD_S = 4 * 3600.0
# A day of requests, 1,414 of them, over TLS with one small certificate and with an error for an
# answer took 2.0 MB; a chain of certificates is several times as long.
BESIDE_BYTES = 8 << 20
STEP_BYTES = 4 << 20


class Account(Strict, frozen=True, kw_only=True):
    """What one server did.

    Attributes:
        body_bytes: what it sent of files.
        beside_bytes: what else it sent.
        again_ms: wall clock at which it may be asked again; 0 where nothing speaks against it.
    """

    body_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    beside_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    again_ms: int = 0


def hold_s(rng: Random) -> float:
    """Seconds for which a server with a wrong file is left alone; drawn, for a fleet of devices."""
    return HOLD_S * (1 + rng.random())


def held_s(again_ms: int, *, now_ms: int) -> float:
    """Seconds until it may be asked again; 0 where the clock was set back, and nobody can say."""
    left_s = (again_ms - now_ms) / 1000
    return left_s if 0 < left_s <= 2 * HOLD_S else 0.0


class Allowance:
    """The accounts of all servers for one bundle.

    Args:
        path: where they are kept.
        size_bytes: of the bundle's file.
        clock: its wall clock decides when a server may be asked again.
        rng: spreads the attempts of many devices.
    """

    def __init__(self, path: Path, *, size_bytes: int, clock: Clock, rng: Random) -> None:
        self._path = path
        self._limit_bytes = TIMES * size_bytes
        self._clock = clock
        self._rng = rng
        self._accounts = _read(path)
        self._unsaved_bytes = 0

    def left_bytes(self, base: str) -> int:
        """What a server may still send of files; nothing where it sent too much beside them."""
        is_over = self.beside_left_bytes(base) == 0
        return 0 if is_over else max(0, self._limit_bytes - self._account(base).body_bytes)

    def beside_left_bytes(self, base: str) -> int:
        """What a server may still send beside files."""
        return max(0, BESIDE_BYTES - self._account(base).beside_bytes)

    def spend(self, base: str, *, body_bytes: int = 0, beside_bytes: int = 0) -> None:
        """A server sent so much; what adds up is kept on disk, raising `StorageError`."""
        account = self._account(base)
        self._accounts[base] = msgspec.structs.replace(
            account,
            body_bytes=account.body_bytes + body_bytes,
            beside_bytes=account.beside_bytes + beside_bytes,
        )
        self._unsaved_bytes += body_bytes + beside_bytes
        if self._unsaved_bytes >= STEP_BYTES:
            self.save()

    def hold(self, base: str) -> float:
        """A server sent a wrong file: seconds for which it is left alone; they are on disk."""
        seconds = hold_s(self._rng)
        again_ms = self._clock.now_ms() + round(seconds * 1000)
        self._accounts[base] = msgspec.structs.replace(self._account(base), again_ms=again_ms)
        self._write()
        return seconds

    def held_s(self, base: str) -> float:
        """Seconds for which a server is left alone still."""
        return held_s(self._account(base).again_ms, now_ms=self._clock.now_ms())

    def save(self) -> None:
        """Bring to the disk what is not there yet, raising `StorageError`."""
        if self._unsaved_bytes:
            self._write()

    def _account(self, base: str) -> Account:
        return self._accounts.get(base, _NEW)

    def _write(self) -> None:
        storage.write(self._path, msgspec.json.encode(self._accounts))
        self._unsaved_bytes = 0


_NEW = Account()


def _read(path: Path) -> dict[str, Account]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Account])
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise StorageError(f"{path} cannot be read: {e.strerror}") from e
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Not written by this daemon, which replaces it whole.
        return {}
