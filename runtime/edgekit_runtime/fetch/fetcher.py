"""Fetcher: brings one bundle to this device, by the cheapest way that gives the announced file.

    STATE/fetch/SHA256.part          the bundle's file, as far as it is here
    STATE/fetch/SHA256.delta         a delta to it, as far as it is here
    STATE/fetch/….mark               what of them can be believed (`part`)

Promise: a file that `fetch` returns is the announced one, byte for byte, whichever way it came.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import SplitResult

from edgekit import storage
from edgekit.clock import Clock
from edgekit.errors import BundleError, StorageError
from edgekit.messages import Wanted
from edgekit_runtime.fetch import address, room
from edgekit_runtime.fetch.attempt import Attempt, Link, Progress
from edgekit_runtime.fetch.connection import tls_context
from edgekit_runtime.fetch.download import Download
from edgekit_runtime.fetch.hours import Hours, Wait
from edgekit_runtime.fetch.pace import Bucket
from edgekit_runtime.fetch.part import Part, boot_id, file_sha256, file_size
from edgekit_runtime.fetch.patience import Patience
from edgekit_runtime.fetch.window import Window
from edgekit_runtime.update import Reason, UpdateFailed

if TYPE_CHECKING:
    from edgekit_runtime.trusted.target import Delta, Target

log = logging.getLogger(__name__)

Tell = Callable[[Reason, str], None]

# What may be wrong with a delta alone; the bundle itself may still be had.
_OF_THE_DELTA = frozenset(
    {
        Reason.BAD_URL,
        Reason.FETCH_REFUSED,
        Reason.FETCH_TIMEOUT,
        Reason.WRONG_SIZE,
        Reason.WRONG_SHA256,
    }
)
# No limit of bandwidth lets a burst through that is longer than this.
_BURST_S = 0.25


class Fetcher:
    """Downloads into one folder; one download at a time.

    Args:
        folder: where parts lie; made where it is missing.
        repository: base of relative addresses; ends in `/`.
        mirrors: further bases that hold the same.
        reserve_bytes: disk space that must stay free.
        clock: measures the time limit; its wall clock decides about the window.
        rng: spreads the attempts of many devices.
        bandwidth_bytes_s: most bytes a second; `None` is no limit.
        window: `HH:MM-HH:MM` in local time, in which downloads go on; `None` is always.
        ca: file of certificates that are trusted beside the system's, for `https`.
        idle_timeout_s: how long a connection may be silent.
        slowest_bytes_s: a mirror that delivers less is left for another one, where there is one.
        slow_window_s: over which that is judged.
        boot: which start of the system this is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        repository: str,
        mirrors: Sequence[str] = (),
        reserve_bytes: int,
        clock: Clock,
        rng: Random,
        bandwidth_bytes_s: int | None = None,
        window: str | None = None,
        ca: Path | None = None,
        idle_timeout_s: float = 30.0,
        slowest_bytes_s: float = 1024.0,
        slow_window_s: float = 30.0,
        boot: str | None = None,
    ) -> None:
        storage.make_folder(folder)
        self._folder = folder
        self._repositories = (repository, *mirrors)
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        self._rng = rng
        self._window = None if window is None else Window.parse(window)
        self._ca = ca
        self._boot = boot_id() if boot is None else boot
        self._link = Link(idle_timeout_s, bandwidth_bytes_s, slowest_bytes_s, slow_window_s)
        self._bucket = _bucket(bandwidth_bytes_s, now_s=clock.monotonic())
        self._best: str | None = None

    def part(self, wanted: Wanted) -> Path:
        """Where a download lies until its bundle is staged."""
        return self._folder / f"{wanted.sha256}.part"

    def hours(self, wait: Wait) -> Hours:
        """The hours in which downloads go on, for who waits beside one."""
        return Hours(self._window, clock=self._clock, wait=wait)

    def fetch(
        self,
        wanted: Wanted,
        *,
        base: Path | None = None,
        base_digest: str | None = None,
        target: Target | None = None,
        frees_bytes: int = 0,
        limit_s: float,
        progress: Progress,
        wait: Wait,
        tell: Tell | None = None,
    ) -> Path:
        """Bring what is missing of a bundle and return its file.

        Args:
            wanted: what to bring.
            base: an installed bundle (slot or `.edge`) that a delta may start from.
            base_digest: its digest.
            target: what the signed repository says of the bundle; without one its address is
                `wanted.url`, and there are no deltas.
            frees_bytes: what goes from the free slot before the bundle is unpacked there.
            limit_s: for all attempts together, in seconds; hours outside the window do not count.
            progress: called with the share that is here.
            wait: waits for a number of seconds, and says whether the download shall end.
            tell: hears of what went wrong and was mended.

        Raises:
            UpdateFailed: with a reason code.
            Interrupted: `wait` said so.
            StorageError: the disk takes no more.
        """
        part = self._part(self.part(wanted), wanted.size_bytes, wanted.sha256)
        short = None if part.is_begun else _shortest(target, base_digest, wanted.size_bytes)
        if (
            short is not None
            and base is not None
            and self._fits(short.size_bytes, wanted, frees_bytes=frees_bytes)
        ):
            # Half of the time: a repository that holds back nothing but deltas is waited out.
            patience = self._patience(short.path, limit_s / 2, wait)
            if self._rebuild(part, base, short, patience, progress=progress, tell=tell):
                return part.path
            limit_s = limit_s / 2 + patience.left_s()
        missing = wanted.size_bytes - part.held_bytes()
        self._check_room(missing, wanted, rebuilt=0, frees_bytes=frees_bytes)
        urls = self._urls(wanted, target)
        patience = self._patience(wanted.url, limit_s, wait)
        self._download(part, wanted.url, urls, patience, progress)
        return part.path

    def forget(self, wanted: Wanted) -> None:
        """Delete the file of a bundle that is needed no more, raising `StorageError`."""
        _remove(self.part(wanted))

    def tidy(self, keep: set[str]) -> None:
        """Delete every part, delta and mark but those of bundles with these sha256.

        Raises:
            StorageError: the disk does not let one go.
        """
        for path in self._folder.iterdir():
            # What begins with a dot was being written when the daemon ended.
            if path.is_file() and path.name.partition(".")[0] not in keep:
                _remove(path)

    def _rebuild(
        self,
        part: Part,
        base: Path,
        short: Delta,
        patience: Patience,
        *,
        progress: Progress,
        tell: Tell | None,
    ) -> bool:
        """Bring the bundle by a delta; `False` where that gave nothing, which is told."""
        # The decoder is memory that a board without deltas does not spend.
        from edgekit import delta

        patch = self._part(part.path.with_suffix(".delta"), short.size_bytes, short.sha256)
        try:
            urls = address.every(short.urls, "")
            self._download(patch, short.path, urls, patience, progress)
            delta.apply(
                base,
                patch.path,
                part.path,
                wanted_sha256=part.sha256,
                wanted_size_bytes=part.size_bytes,
            )
        except (BundleError, UpdateFailed) as e:
            if isinstance(e, UpdateFailed) and e.reason not in _OF_THE_DELTA:
                raise
            # Begun now: a start after this one does not try the delta again.
            part.begin()
            patch.delete()
            log.warning("delta is of no use", extra={"delta": short.path, "error": str(e)})
            if tell is not None:
                tell(Reason.DELTA_BROKEN, f"{short.path}: {e}")
            return False
        part.finish()
        patch.delete()
        log.info(
            "bundle rebuilt from a delta",
            extra={"delta": short.path, "fetched_bytes": short.size_bytes, "of": part.size_bytes},
        )
        return True

    def _download(
        self,
        part: Part,
        what: str,
        urls: Sequence[SplitResult],
        patience: Patience,
        progress: Progress,
    ) -> None:
        download = Download(
            part,
            what=what,
            urls=urls,
            best=self._best,
            attempt=Attempt(
                part,
                what=what,
                link=self._link,
                bucket=self._bucket,
                tls=self._tls if any(url.scheme == "https" for url in urls) else None,
                patience=patience,
                progress=progress,
            ),
            patience=patience,
            rng=self._rng,
        )
        try:
            download.run()
        finally:
            self._best = download.best

    def _patience(self, what: str, limit_s: float, wait: Wait) -> Patience:
        return Patience(what, limit_s=limit_s, window=self._window, clock=self._clock, wait=wait)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context(self._ca)

    def _urls(self, wanted: Wanted, target: Target | None) -> tuple[SplitResult, ...]:
        if target is None:
            return address.every(self._repositories, wanted.url)
        return address.every(target.urls, "")

    def _part(self, path: Path, size_bytes: int, sha256: str) -> Part:
        return Part(path, size_bytes=size_bytes, sha256=sha256, boot=self._boot)

    def _fits(self, delta_bytes: int, wanted: Wanted, *, frees_bytes: int) -> bool:
        """Whether there is room for the way by the delta; the whole file takes less."""
        try:
            self._check_room(
                delta_bytes, wanted, rebuilt=wanted.size_bytes, frees_bytes=frees_bytes
            )
        except UpdateFailed:
            return False
        return True

    def _check_room(self, download: int, wanted: Wanted, *, rebuilt: int, frees_bytes: int) -> None:
        need = room.Need(
            download=download,
            rebuilt=rebuilt,
            slot=wanted.size_bytes,
            freed=frees_bytes,
            reserve=self._reserve_bytes,
        )
        room.check(self._folder, need)


def check(part: Path, wanted: Wanted) -> None:
    """Compare a file with its announced size and sha256; one that differs is deleted."""
    size = file_size(part)
    if size != wanted.size_bytes:
        part.unlink(missing_ok=True)
        raise UpdateFailed(Reason.WRONG_SIZE, f"{wanted.url}: {size} of {wanted.size_bytes} bytes")
    digest = file_sha256(part)
    if digest != wanted.sha256:
        part.unlink()
        raise UpdateFailed(Reason.WRONG_SHA256, f"{wanted.url}: sha256 is {digest}")


def _shortest(target: Target | None, base_digest: str | None, size_bytes: int) -> Delta | None:
    """The smallest delta from the installed bundle that is smaller than the whole file."""
    fitting = [
        short
        for short in (target.deltas if target is not None else ())
        if short.base == base_digest and short.size_bytes < size_bytes
    ]
    return min(fitting, key=lambda short: short.size_bytes, default=None)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise StorageError(f"{path} cannot be removed: {e.strerror}") from e


def _bucket(bytes_s: int | None, *, now_s: float) -> Bucket | None:
    return None if bytes_s is None else Bucket(bytes_s, burst_bytes=bytes_s * _BURST_S, now_s=now_s)
