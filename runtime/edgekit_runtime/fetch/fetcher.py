"""Fetcher: brings one bundle to this device, by the cheapest way that gives the announced file.

    STATE/fetch/SHA256.part          the bundle's file, as far as it is here
    STATE/fetch/SHA256.delta         a delta to it, as far as it is here
    STATE/fetch/….mark               what of them can be believed (`part`)
    STATE/fetch/SHA256.spent         what each server sent for it (`allowance`)

Promise: a file that `fetch` returns is the announced one, byte for byte, whichever way it came.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from edgekit import storage
from edgekit.clock import Clock
from edgekit.errors import BundleError
from edgekit.messages import Wanted
from edgekit_runtime.fetch import address, room, shortcut
from edgekit_runtime.fetch import allowance as allowances
from edgekit_runtime.fetch.address import Place
from edgekit_runtime.fetch.allowance import Allowance
from edgekit_runtime.fetch.attempt import Attempt, Link, Progress
from edgekit_runtime.fetch.connection import tls_context
from edgekit_runtime.fetch.download import Download
from edgekit_runtime.fetch.hours import Hours, Wait
from edgekit_runtime.fetch.pace import Bucket
from edgekit_runtime.fetch.part import Part, boot_id, file_sha256, file_size, remove
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
        Reason.FETCH_EXHAUSTED,
        Reason.WRONG_SIZE,
        Reason.WRONG_SHA256,
        Reason.DELTA_BROKEN,
    }
)
# No limit of bandwidth lets a burst through that is longer than this.
_BURST_S = 0.25
_DELTA_SUFFIX = ".delta"


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
            wait: waits for a number of seconds, and says whether the download shall end; asked
                with 0 from another thread, too.
            tell: hears of what went wrong and was mended.

        Raises:
            OnHold: whoever could be asked sent a wrong file; not for hours.
            UpdateFailed: with a reason code.
            Interrupted: `wait` said so.
            StorageError: the disk takes no more.
        """
        part = self._part(self.part(wanted), wanted.size_bytes, wanted.sha256)
        allowance = Allowance(
            part.path.with_suffix(allowances.SUFFIX),
            size_bytes=wanted.size_bytes,
            clock=self._clock,
            rng=self._rng,
        )
        self._clear_remains(part, tell)
        short = shortcut.shortest(target, base_digest, wanted.size_bytes)
        try:
            if (
                not part.is_begun
                and base is not None
                and target is not None
                and short is not None
                and self._fits(short.size_bytes, wanted, frees_bytes=frees_bytes)
            ):
                # Half of the time: a repository that holds back nothing but deltas is waited out.
                patience = self._patience(short.path, limit_s / 2, wait)
                get = partial(self._download, allowance, patience, progress)
                if self._rebuild(get, part, base, target, short, patience=patience, tell=tell):
                    return part.path
                limit_s = limit_s / 2 + patience.left_s()
            missing = wanted.size_bytes - part.held_bytes()
            self._check_room(missing, wanted, rebuilt=0, frees_bytes=frees_bytes)
            patience = self._patience(wanted.url, limit_s, wait)
            places = self._places(wanted, target)
            self._download(allowance, patience, progress, part, wanted.url, places)
        finally:
            allowance.save()
        return part.path

    def forget(self, wanted: Wanted) -> None:
        """Delete the file of a bundle that is needed no more, raising `StorageError`."""
        remove(self.part(wanted))

    def tidy(self, keep: set[str]) -> None:
        """Delete every part, delta, mark and account but those of bundles with these sha256.

        Raises:
            StorageError: the disk does not let one go.
        """
        for path in self._folder.iterdir():
            # What begins with a dot was being written when the daemon ended.
            if path.is_file() and path.name.partition(".")[0] not in keep:
                remove(path)

    def _rebuild(
        self,
        get: Callable[[Part, str, Sequence[Place]], None],
        part: Part,
        base: Path,
        target: Target,
        short: Delta,
        *,
        patience: Patience,
        tell: Tell | None,
    ) -> bool:
        """Bring the bundle by a delta; `False` where that gave nothing, which is told."""
        patch = self._patch(part, short)
        try:
            get(patch, short.path, address.beside(target.urls, short.urls))
            shortcut.rebuild(base, patch, part, patience=patience)
        except (BundleError, UpdateFailed) as e:
            if isinstance(e, UpdateFailed) and e.reason not in _OF_THE_DELTA:
                raise
            # Begun now: a start after this one does not try the delta again.
            part.begin()
            patch.delete()
            _tell_broken(tell, f"{short.path}: {e}")
            return False
        log.info(
            "bundle rebuilt from a delta",
            extra={"delta": short.path, "fetched_bytes": short.size_bytes, "of": part.size_bytes},
        )
        return True

    def _clear_remains(self, part: Part, tell: Tell | None) -> None:
        if shortcut.clear_remains(part, self._patch(part)):
            _tell_broken(tell, f"{part.path.name}: the daemon ended while it read the delta")

    def _download(
        self,
        allowance: Allowance,
        patience: Patience,
        progress: Progress,
        part: Part,
        what: str,
        places: Sequence[Place],
    ) -> None:
        is_delta = part.path.suffix == _DELTA_SUFFIX
        download = Download(
            part,
            what=what,
            places=places,
            best=self._best,
            attempt=Attempt(
                part,
                what=what,
                link=self._link,
                allowance=allowance,
                bucket=self._bucket,
                tls=self._tls if any(place.url.scheme == "https" for place in places) else None,
                patience=patience,
                progress=progress,
            ),
            allowance=None if is_delta else allowance,
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

    def _places(self, wanted: Wanted, target: Target | None) -> tuple[Place, ...]:
        if target is None:
            return address.every(self._repositories, wanted.url)
        return address.every(target.urls, "")

    def _part(self, path: Path, size_bytes: int, sha256: str) -> Part:
        return Part(path, size_bytes=size_bytes, sha256=sha256, boot=self._boot)

    def _patch(self, part: Part, short: Delta | None = None) -> Part:
        path = part.path.with_suffix(_DELTA_SUFFIX)
        return self._part(path, short.size_bytes if short else 0, short.sha256 if short else "")

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


def _tell_broken(tell: Tell | None, why: str) -> None:
    log.warning("delta is of no use", extra={"error": why})
    if tell is not None:
        tell(Reason.DELTA_BROKEN, why)


def _bucket(bytes_s: int | None, *, now_s: float) -> Bucket | None:
    return None if bytes_s is None else Bucket(bytes_s, burst_bytes=bytes_s * _BURST_S, now_s=now_s)
