"""The child: asks repository and mirrors in their order, and writes one answer to stdout.

It has a limit of memory, of CPU time, of file sizes and of time, the last by an alarm that also
ends what waits for a socket or for the lock. The lock is for a child whose daemon was killed and
who is not done yet: two must not write the same metadata.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from types import FrameType

from edgekit import released, storage
from edgekit.errors import StorageError
from edgekit_runtime.trusted import verdicts
from edgekit_runtime.trusted.client import Client, Signed
from edgekit_runtime.trusted.fetcher import Fetcher
from edgekit_runtime.trusted.target import (
    Answer,
    Delta,
    Disk,
    Failed,
    Found,
    Passing,
    Request,
    Target,
    decode_request,
    encode,
)

LOCK = "lock"
CPU_LIMIT_S = 60
FILE_LIMIT_BYTES = 8 << 20


class _OutOfTime(BaseException):
    """The alarm rang. No `except Exception` of a library may take it."""


def main() -> None:
    request = decode_request(sys.stdin.buffer.read())
    _limit(request)
    sys.stdout.buffer.write(encode(answer(request)))


def answer(request: Request) -> Answer:
    """Ask one repository after the other, each with its share of the time that is left."""
    until = time.monotonic() + request.limit_s
    found: list[Failed | Passing] = []
    try:
        storage.make_folder(request.state)
        with _locked(request):
            for number, url in enumerate(request.urls):
                share_s = (until - time.monotonic()) / (len(request.urls) - number)
                verdict = _ask(request, url, limit_s=share_s)
                if isinstance(verdict, Found):
                    return verdict
                found.append(verdict)
    except _OutOfTime:
        found.append(Passing(detail=f"{request.state} is in use by another process"))
    except StorageError as e:
        cause = e.__cause__
        return Disk(errno=(isinstance(cause, OSError) and cause.errno) or 0, detail=e.message)
    except OSError as e:
        return Disk(errno=e.errno or 0, detail=f"{e.filename or request.state}: {e.strerror}")
    return verdicts.together(found)


def _ask(request: Request, url: str, *, limit_s: float) -> Found | Failed | Passing:
    wall = datetime.now(timezone.utc)
    try:
        root, fetcher = request.root.read_bytes(), Fetcher(url, ca=request.ca)
    except OSError as e:
        damaged = f"{request.root} or {request.ca} cannot be read, {e}: enrol this device again"
        return Failed(reason=verdicts.UNTRUSTED, detail=damaged)
    client = Client(url, root=root, state=request.state, wall=wall, fetcher=fetcher)
    try:
        with _within(limit_s):
            try:
                signed = client.find(request.path)
            except OSError:
                # Something stands where metadata belongs, or the disk is full: only the first
                # is cured by this.
                client.forget()
                signed = client.find(request.path)
    except _OutOfTime:
        return Passing(detail=f"{url}: not read within {limit_s:.0f} s")
    except verdicts.Foreseen as e:
        reference = client.reference
        return verdicts.of(e, url=url, wall=wall, reference=reference, server=fetcher.date)
    finally:
        fetcher.close()
    behind_s = (client.reference - wall).total_seconds()
    return Found(target=_target(request, signed, behind_s=behind_s))


def _target(request: Request, signed: Signed, *, behind_s: float) -> Target:
    def urls(path: str, sha256: str) -> tuple[str, ...]:
        return tuple(f"{base}{released.stored(path, sha256)}" for base in request.urls)

    deltas = [
        Delta(
            base=entry.base,
            path=entry.path,
            sha256=entry.sha256,
            size_bytes=entry.size_bytes,
            urls=urls(entry.path, entry.sha256),
        )
        for entry in signed.custom.deltas
    ]
    return Target(
        path=signed.file.path,
        sha256=signed.sha256,
        size_bytes=signed.file.length,
        digest=signed.custom.digest,
        urls=urls(signed.file.path, signed.sha256),
        deltas=tuple(deltas),
        keys=signed.keys,
        candidate=signed.file.path.startswith(released.CANDIDATES),
        clock_behind_s=behind_s,
    )


def _limit(request: Request) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (request.limit_bytes, request.limit_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


@contextmanager
def _within(limit_s: float) -> Iterator[None]:
    """Raise `_OutOfTime` in the block when its time is over, and nowhere else."""
    is_within = True

    def ring(_number: int, _frame: FrameType | None) -> None:
        # A bell that rang at the very end is heard after it.
        if is_within:
            raise _OutOfTime

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(limit_s, 1e-3))
    try:
        yield
    finally:
        is_within = False
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _locked(request: Request) -> Iterator[None]:
    """Hold the metadata; another child that has it is waited for, within the time limit."""
    path = request.state / LOCK
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with _within(request.limit_s):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
