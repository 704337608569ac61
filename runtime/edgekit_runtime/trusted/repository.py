"""Repository: asks a child process for a bundle's signed facts, within limits.

Promise: `find` returns what a chain of signatures from this device's first root says, or raises.
Whoever serves a repository or sits on the way to it can make it slow or fail, and no more: the
child has a limit of time, memory and bytes, and this process reads its answer alone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgekit import released
from edgekit.errors import FleetError, LinkError, StorageError
from edgekit.messages import Wanted
from edgekit_runtime.trusted.target import (
    Answer,
    Disk,
    Failed,
    Passing,
    Request,
    Target,
    decode_answer,
    encode,
)
from edgekit_runtime.update import Reason, UpdateFailed, disk_reason

LIMIT_S = 120.0
# What a child may reserve, libraries included: five times what it does (docs/repository.md).
LIMIT_BYTES = 256 << 20
_GRACE_S = 5.0
_POLL_S = 0.1
_TOLD_CHARS = 300


class Cancelled(LinkError):
    """Somebody asked it to end."""


class Repository:
    """The fleet's repository and its mirrors, as far as this device trusts them.

    Args:
        urls: their bases; each ends in `/`. They are asked in this order.
        root: the root that this device trusted first.
        state: folder for the metadata that was trusted last; made where it is missing.
        ca: certificates for https beside the system's.
        limit_s: for one `find`, in seconds.
    """

    def __init__(
        self,
        *,
        urls: Sequence[str],
        root: Path,
        state: Path,
        ca: Path | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._urls = tuple(urls)
        self._root = root.absolute()
        self._state = state.absolute()
        self._ca = ca.absolute() if ca else None
        self._limit_s = limit_s

    def find(self, path: str, *, cancelled: Callable[[], bool]) -> Target:
        """What is signed for a target path.

        Args:
            path: `NAME/VERSION/PROFILE.edge`.
            cancelled: asked ten times a second.

        Raises:
            Cancelled: `cancelled` said so.
            LinkError: no repository answers now, or not in time.
            UpdateFailed: the repositories that answer cannot be trusted (repository_untrusted),
                offer what has expired or is older than what was seen (repository_stale), answer
                with errors (repository_refused) or do not have it (not_in_repository); this
                board's clock or disk is in the way (clock_wrong, read_only, disk_full); no bundle
                can have this path (bad_url).
        """
        try:
            released.check_path(path)
        except FleetError as e:
            raise UpdateFailed(Reason.BAD_URL, e.with_hint) from e
        request = Request(
            path=path,
            urls=self._urls,
            root=self._root,
            state=self._state,
            ca=self._ca,
            limit_s=self._limit_s,
            limit_bytes=LIMIT_BYTES,
        )
        return outcome(self._ask(request, cancelled))

    def _ask(self, request: Request, cancelled: Callable[[], bool]) -> Answer:
        code, said, complaint = self._run(encode(request), cancelled)
        try:
            return decode_answer(said)
        except msgspec.MsgspecError as e:
            how = f"died of signal {-code}" if code < 0 else f"ended with code {code}"
            lines = complaint.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise LinkError(
                f"the process that asks the repository {how}: {lines[-1][:_TOLD_CHARS]}",
                hint="it is tried again; look at the board's free memory if it stays so",
            ) from e

    def _run(self, request: bytes, cancelled: Callable[[], bool]) -> tuple[int, bytes, bytes]:
        until = time.monotonic() + self._limit_s + _GRACE_S
        question: bytes | None = request
        with subprocess.Popen(
            [sys.executable, "-m", "edgekit_runtime.trusted"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A module in the daemon's working folder must not stand in for one of the child's.
            cwd="/",
            # A terminal's ^C reaches the daemon alone, which then ends the child.
            start_new_session=True,
        ) as child:
            try:
                while time.monotonic() < until:
                    if cancelled():
                        raise Cancelled("asking the repository was cancelled")
                    try:
                        said, complaint = child.communicate(question, timeout=_POLL_S)
                    except subprocess.TimeoutExpired:
                        question = None
                        continue
                    return child.returncode, said, complaint
            finally:
                child.kill()
        raise LinkError(f"the repository was not read within {self._limit_s:g} s")


def outcome(answer: Answer) -> Target:
    """The target of an answer, or what it says is in the way, raised as `find` does."""
    if isinstance(answer, Failed):
        raise UpdateFailed(Reason(answer.reason), answer.detail)
    if isinstance(answer, Passing):
        raise LinkError(answer.detail)
    if isinstance(answer, Disk):
        error = StorageError(answer.detail)
        error.__cause__ = OSError(answer.errno, answer.detail)
        raise UpdateFailed(disk_reason(error), answer.detail) from error
    return answer.target


def agree(target: Target, wanted: Wanted) -> None:
    """Hold what is signed in the repository against what the desired state announces.

    Raises:
        UpdateFailed: not_in_repository, where size, sha256 or digest differ.
    """
    for name in ("sha256", "size_bytes", "digest"):
        signed, announced = getattr(target, name), getattr(wanted, name)
        if signed != announced:
            raise UpdateFailed(
                Reason.NOT_IN_REPOSITORY,
                f"{target.path}: its {name} is {signed} in the repository, {announced} is wanted",
            )
