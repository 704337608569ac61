"""Make: the delta from an old bundle to a new one.

Done on a workstation: both bundles and an index of the old one lie in memory, about 35 times the
old bundle. The same two bundles and the same zstd give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path, PurePosixPath

from edgekit import storage
from edgekit.delta.base import Base
from edgekit.delta.blocks import blocks
from edgekit.delta.form import LITERAL, Head, NotSmaller, Operation
from edgekit.delta.plan import Planner, Run
from edgekit.structs import Strict

WORTH = 0.95
"""Largest share of the new file that a delta may have: rebuilding takes a board time and disk."""
CONTAINER = ""
"""Stands in a report for the zip directory at the end of a bundle."""


class DeltaReport(Strict, frozen=True, kw_only=True):
    """What was made.

    Attributes:
        base_digest: of the old bundle, `sha256:` and 64 hex digits.
        digest: of the new one.
        sha256: of the delta file, 64 hex digits.
        size_bytes: of the delta file.
        target_sha256: of the new `.edge` file.
        target_size_bytes: of that.
        entries: bytes of the delta for each entry of the new bundle, its header included, by
            name; `CONTAINER` for the directory. With the head they are all of it.
    """

    base_digest: str
    digest: str
    sha256: str
    size_bytes: int
    target_sha256: str
    target_size_bytes: int
    entries: dict[str, int]


def make(old: Path, new: Path, out: Path) -> DeltaReport:
    """Write the delta from one bundle to another at `out`, whole or not at all.

    Args:
        old: the bundle that devices have: a `.edge` file or an unpacked folder.
        new: the `.edge` file that they are to have.
        out: where the delta goes.

    Raises:
        NotSmaller: the delta has more than `WORTH` of the new file; nothing was written.
        BundleError: one of them is no bundle.
        StorageError: a file cannot be read or written.
    """
    with Base(old) as base, Base(new) as target:
        base_digest, digest = base.digest(), target.digest()
        before = base.read(0, base.size_bytes)
    after = b"".join(storage.chunks(new))
    parts = _parts(base, target, before=before, after=after)
    head = Head(
        base_digest=base_digest,
        base_size_bytes=len(before),
        digest=digest,
        target_sha256=hashlib.sha256(after).hexdigest(),
        target_size_bytes=len(after),
        blocks=sum(len(made) for made in parts.values()),
    )
    raw = b"".join((head.encode(), *chain.from_iterable(parts.values())))
    if len(raw) > WORTH * len(after):
        raise NotSmaller(
            f"a delta from {old} has {len(raw)} bytes, {new} has {len(after)}: not worth it",
            hint="publish the bundle without this delta",
        )
    storage.write(out, raw)
    return DeltaReport(
        base_digest=head.base_digest,
        digest=head.digest,
        sha256=hashlib.sha256(raw).hexdigest(),
        size_bytes=len(raw),
        target_sha256=head.target_sha256,
        target_size_bytes=head.target_size_bytes,
        entries={name: sum(map(len, made)) for name, made in parts.items()},
    )


def _before(name: str, runs: Mapping[str, Run]) -> Run | None:
    """The old entry of a name; else the largest in the same folder with the same ending, as an
    artefact is called after its variant."""
    if name in runs:
        return runs[name]
    path = PurePosixPath(name)
    alike = [
        run
        for other, run in runs.items()
        if (PurePosixPath(other).parent, PurePosixPath(other).suffix) == (path.parent, path.suffix)
    ]
    return max(alike, key=lambda run: len(run.data), default=None)


def _parts(base: Base, target: Base, *, before: bytes, after: bytes) -> dict[str, list[bytes]]:
    """Blocks by the entry that they make; each begins where the entry before it ended."""
    old, new = memoryview(before), memoryview(after)
    runs = {
        piece.name: Run(old[start : start + piece.size], start)
        for piece, start in zip(base.pieces, base.starts, strict=True)
    }
    planner = Planner(before)
    parts = {}
    done = 0
    for piece in target.pieces:
        end = piece.offset + piece.size
        header = Operation(LITERAL, piece.offset - done, 0)
        data = planner.operations(piece.name, new[piece.offset : end], _before(piece.name, runs))
        parts[piece.name] = list(blocks([header, *data], new=new[done:end], old=old))
        done = end
    ending = Operation(LITERAL, len(new) - done, 0)
    parts[CONTAINER] = list(blocks([ending], new=new[done:], old=old))
    return parts
