"""Shortcut: a bundle rebuilt on the board from the one that is installed and a delta.

Promise: before a delta is read it is noted on disk that the whole file comes next. Should reading
it end the daemon, by the board's memory or a fault of the reader, the next start fetches the whole
file, and the delta has cost one start. An end in good order takes the note back.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import BundleError, StorageError
from edgekit_runtime.fetch.part import Part, remove
from edgekit_runtime.fetch.patience import Interrupted, Patience
from edgekit_runtime.update import Reason, UpdateFailed

if TYPE_CHECKING:
    from edgekit_runtime.trusted.target import Delta, Target

log = logging.getLogger(__name__)

# 8 MB take 50 ms of an x86 core (docs/delta.md); a disk may be slow, and nothing waits for ever.
REBUILD_LIMIT_S = 900.0


def shortest(target: Target | None, base_digest: str | None, size_bytes: int) -> Delta | None:
    """The smallest delta from the installed bundle that is smaller than the whole file."""
    fitting = [
        short
        for short in (target.deltas if target is not None else ())
        if short.base == base_digest and short.size_bytes < size_bytes
    ]
    return min(fitting, key=lambda short: short.size_bytes, default=None)


def rebuild(base: Path, patch: Part, part: Part, *, patience: Patience) -> None:
    """Make the whole file of a bundle; it is the announced one when this returns.

    Args:
        base: the installed bundle (slot or `.edge`).
        patch: the delta, whole.
        part: the bundle's file, of which nothing is here.
        patience: who may end it. It has `REBUILD_LIMIT_S` of its own.

    Raises:
        BundleError: the delta, or what it is applied to, is damaged.
        UpdateFailed: `delta_broken`, where the delta takes too long or shows a fault of its reader.
        Interrupted: somebody asked the download to end; the delta is used again.
        StorageError: the disk takes no more.
    """
    # The decoder is memory that a board without deltas does not spend.
    from edgekit import delta

    until_s = patience.now_s() + REBUILD_LIMIT_S

    def check() -> None:
        patience.check()
        if patience.now_s() > until_s:
            raise UpdateFailed(Reason.DELTA_BROKEN, f"not rebuilt within {REBUILD_LIMIT_S:g} s")

    part.begin()
    try:
        delta.apply(
            base,
            patch.path,
            part.path,
            wanted_sha256=part.sha256,
            wanted_size_bytes=part.size_bytes,
            check=check,
        )
    except Interrupted:
        part.delete()
        raise
    except (BundleError, StorageError, UpdateFailed):
        raise
    except Exception as e:  # whatever is wrong with the reader, the whole file needs none
        log.exception("delta ended its reader", extra={"delta": patch.path.name})
        raise UpdateFailed(Reason.DELTA_BROKEN, f"{type(e).__name__}: {e}") from e
    part.finish()
    patch.delete()


def clear_remains(part: Part, patch: Part) -> bool:
    """Delete what a rebuilding left that did not end; whether there was one."""
    if not (part.is_begun and patch.is_begun):
        return False
    for path in part.path.parent.glob(f".{part.path.name}.*"):
        remove(path)
    patch.delete()
    return True
