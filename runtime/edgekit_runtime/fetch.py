"""Fetch: one bundle over HTTP, resumed where it broke off.

Promise: what `fetch` returns has exactly the announced size; what it holds is checked by `check`.
A part survives the daemon under `STATE/fetch/SHA256.part`. Connections that stall, lie about
lengths or send garbage cost time, bounded by timeouts, and never more disk than was announced.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from random import Random
from typing import BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from edgekit import storage
from edgekit.clock import Clock
from edgekit.errors import LinkError
from edgekit.messages import Wanted
from edgekit_runtime.update import Reason, UpdateFailed

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18
SYNC_BYTES = 16 << 20
IDLE_TIMEOUT_S = 30.0
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 120.0

_RANGE = r"bytes (\d+)-(\d+)/(\d+)\Z"
# Answers that a server may give now and not later.
_PASSING = frozenset({408, 425, 429})

# Errors of the disk; every other `OSError` is the network's and may pass.
_DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
)

Progress = Callable[[float], None]
Wait = Callable[[float], bool]


class Interrupted(LinkError):
    """Somebody asked the download to end; the part stays."""


class Fetcher:
    """Downloads into one folder.

    Args:
        folder: where parts lie; made where it is missing.
        repository: base of relative addresses.
        reserve_bytes: disk space that must stay free.
        clock: measures the time limit.
        rng: spreads the attempts of many devices.
        idle_timeout_s: how long a connection may be silent.
    """

    def __init__(
        self,
        folder: Path,
        *,
        repository: str,
        reserve_bytes: int,
        clock: Clock,
        rng: Random,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        storage.make_folder(folder)
        self._folder = folder
        self._repository = repository
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        self._rng = rng
        self._idle_timeout_s = idle_timeout_s

    def part(self, wanted: Wanted) -> Path:
        """Where a download lies until its bundle is staged."""
        return self._folder / f"{wanted.sha256}.part"

    def fetch(self, wanted: Wanted, *, limit_s: float, progress: Progress, wait: Wait) -> Path:
        """Download what is missing of a bundle and return its file.

        Args:
            wanted: what to download.
            limit_s: for all attempts together, in seconds.
            progress: called with the share that is here.
            wait: waits for a number of seconds, and says whether the download shall end.

        Raises:
            UpdateFailed: with a reason code; a part that is worth nothing is deleted.
            Interrupted: `wait` said so.
        """
        url = resolve(self._repository, wanted.url)
        part = self.part(wanted)
        self._make_room(part, wanted)
        deadline = self._clock.monotonic() + limit_s
        attempt = 0
        while True:
            before = _size(part)
            if before == wanted.size_bytes:
                return part
            try:
                self._attempt(url, part, wanted, deadline=deadline, progress=progress, wait=wait)
                continue
            except Interrupted:
                raise
            except (HTTPException, LinkError, OSError) as e:
                if isinstance(e, OSError) and e.errno in _DISK:
                    reason = f"{part} cannot be written: {e.strerror}"
                    raise UpdateFailed(Reason.DISK_FULL, reason) from e
                log.info("download interrupted", extra={"url": wanted.url, "error": str(e)})
            attempt = 0 if _size(part) > before else attempt + 1
            pause_s = backoff(attempt, rng=self._rng)
            if self._clock.monotonic() + pause_s >= deadline:
                raise UpdateFailed(Reason.FETCH_TIMEOUT, f"{wanted.url}: not here in {limit_s:g} s")
            if wait(pause_s):
                raise Interrupted(f"{wanted.url}: the download was asked to end")

    def tidy(self, keep: set[str]) -> None:
        """Delete every part but those of these sha256."""
        for part in self._folder.glob("*.part"):
            if part.stem not in keep:
                part.unlink(missing_ok=True)

    def _make_room(self, part: Path, wanted: Wanted) -> None:
        if _size(part) > wanted.size_bytes:
            part.unlink()
        # The file itself, and its entries once more when they are unpacked.
        needed = 2 * wanted.size_bytes - _size(part) + self._reserve_bytes
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UpdateFailed(
                Reason.DISK_FULL, f"{self._folder}: {needed} bytes are needed, {free} are free"
            )

    def _attempt(
        self,
        url: SplitResult,
        part: Path,
        wanted: Wanted,
        *,
        deadline: float,
        progress: Progress,
        wait: Wait,
    ) -> None:
        offset = _size(part)
        connection = _connect(url, timeout_s=self._idle_timeout_s)
        try:
            headers = {"Accept-Encoding": "identity", "User-Agent": "edgekitd"}
            if offset:
                headers["Range"] = f"bytes={offset}-"
            # Closed here too: a connection that ends with its answer has let go of it.
            with self._ask(connection, _target(url), headers) as response:
                offset = _offset(response, offset=offset, wanted=wanted, part=part)
                with part.open("r+b" if part.exists() else "w+b") as file:
                    file.truncate(offset)
                    file.seek(offset)
                    self._copy(
                        response, file, wanted, deadline=deadline, progress=progress, wait=wait
                    )
        finally:
            connection.close()

    def _ask(
        self, connection: HTTPConnection, target: str, headers: dict[str, str]
    ) -> HTTPResponse:
        """Send a request and read the head of its answer, which has one time limit as a whole."""
        connection.connect()
        # A timeout of the socket counts anew with each byte; a head that drips would take weeks.
        watch = threading.Timer(2 * self._idle_timeout_s, _hang_up, [connection.sock])
        watch.daemon = True
        watch.start()
        try:
            connection.request("GET", target, headers=headers)
            return connection.getresponse()
        finally:
            watch.cancel()

    def _copy(
        self,
        response: HTTPResponse,
        file: BinaryIO,
        wanted: Wanted,
        *,
        deadline: float,
        progress: Progress,
        wait: Wait,
    ) -> None:
        position = synced = file.tell()
        try:
            while position < wanted.size_bytes:
                chunk = response.read1(min(CHUNK_BYTES, wanted.size_bytes - position))
                if not chunk:
                    raise LinkError(f"the connection ended at {position} of {wanted.size_bytes}")
                file.write(chunk)
                position += len(chunk)
                # A power cut must not leave a part that is long enough and full of holes.
                if position - synced >= SYNC_BYTES:
                    _sync(file)
                    synced = position
                progress(position / wanted.size_bytes)
                if self._clock.monotonic() >= deadline:
                    raise UpdateFailed(Reason.FETCH_TIMEOUT, f"{wanted.url}: too slow")
                if wait(0.0):
                    raise Interrupted(f"{wanted.url}: the download was asked to end")
        finally:
            _sync(file)


def resolve(repository: str, url: str) -> SplitResult:
    """The address of a bundle; only `http` and `https`, without user and password."""
    try:
        parts = urlsplit(urljoin(repository, url))
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as e:
        raise UpdateFailed(Reason.BAD_URL, f"{url!r} is not an address: {e}") from e
    plain = re.match(r"[!-~]+\Z", parts.geturl()) is not None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise UpdateFailed(Reason.BAD_URL, f"{url!r} is not a plain http or https address")
    if not (plain and port_is_valid):
        raise UpdateFailed(Reason.BAD_URL, f"{url!r} has characters or a port that none may have")
    return parts


def backoff(attempt: int, *, rng: Random) -> float:
    """Seconds before the next attempt: doubled each time, and spread over half of that."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt, 16))
    return longest * (0.5 + rng.random() / 2)


def check(part: Path, wanted: Wanted) -> None:
    """Compare a file with its announced size and sha256; one that differs is deleted."""
    size = _size(part)
    if size != wanted.size_bytes:
        part.unlink(missing_ok=True)
        raise UpdateFailed(Reason.WRONG_SIZE, f"{wanted.url}: {size} of {wanted.size_bytes} bytes")
    digest = hashlib.sha256()
    for chunk in storage.chunks(part):
        digest.update(chunk)
    if digest.hexdigest() != wanted.sha256:
        part.unlink()
        raise UpdateFailed(Reason.WRONG_SHA256, f"{wanted.url}: sha256 is {digest.hexdigest()}")


def _connect(url: SplitResult, *, timeout_s: float) -> HTTPConnection:
    host = url.hostname or ""
    if url.scheme == "http":
        return HTTPConnection(host, url.port, timeout=timeout_s)
    context = ssl.create_default_context()
    return HTTPSConnection(host, url.port, timeout=timeout_s, context=context)


def _target(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def _offset(response: HTTPResponse, *, offset: int, wanted: Wanted, part: Path) -> int:
    """Where the body of this answer begins in the file."""
    length = response.getheader("Content-Length", "")
    if response.status == 200:
        if length.isdigit() and int(length) != wanted.size_bytes:
            part.unlink(missing_ok=True)
            raise UpdateFailed(
                Reason.WRONG_SIZE, f"{wanted.url}: {length} bytes, {wanted.size_bytes} announced"
            )
        return 0
    if response.status == 206:
        found = re.match(_RANGE, response.getheader("Content-Range", ""))
        if found and (int(found[1]), int(found[3])) == (offset, wanted.size_bytes):
            return offset
        part.unlink(missing_ok=True)
        raise LinkError(f"{wanted.url}: the answer is another range than was asked for")
    if response.status == 416:
        part.unlink(missing_ok=True)
        raise UpdateFailed(Reason.WRONG_SIZE, f"{wanted.url}: the repository's file is shorter")
    if response.status in _PASSING or response.status >= 500:
        raise LinkError(f"{wanted.url}: the repository answers {response.status}")
    raise UpdateFailed(Reason.FETCH_REFUSED, f"{wanted.url}: answered {response.status}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _hang_up(sock: socket.socket) -> None:
    # The other end may have closed it at the same moment.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
