"""Rebuild: from an old bundle and a delta the new `.edge` file, byte for byte.

Promise: what stands at `out` afterwards has the wanted size and sha256, or nothing new stands
there. Memory is bounded by a few blocks whatever the delta says, and never more than the wanted
size is written to disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from edgekit import storage
from edgekit.delta import planes
from edgekit.delta.base import Base
from edgekit.delta.form import (
    BLOCK_HEAD_BYTES,
    COPY,
    HEAD_BYTES,
    LITERAL,
    BlockHead,
    DeltaError,
    Head,
    damaged,
    decode_operations,
)
from edgekit.delta.sections import Sections
from edgekit.errors import StorageError


def read_head(patch: Path) -> Head:
    """What a delta file says of itself; its blocks are not looked at.

    Raises:
        DeltaError: it is no delta.
        StorageError: it cannot be read.
    """
    with _opened(patch) as (_, head):
        return head


def apply(
    old: Path,
    patch: Path,
    out: Path,
    *,
    wanted_sha256: str,
    wanted_size_bytes: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Rebuild a `.edge` file at `out`, whole and checked or not at all.

    Args:
        old: the bundle that the delta was made from: a `.edge` file, or the folder it was unpacked
            to.
        patch: the delta file.
        out: where the new `.edge` file goes; a temporary file of its size lies beside it meanwhile.
        wanted_sha256: of the new file, from somebody who is trusted; 64 hex digits.
        wanted_size_bytes: of the new file.
        check: called before each block, of at most 1 MiB; what it raises ends the rebuilding, and
            leaves nothing.

    Raises:
        DeltaError: the delta is damaged, or for other bundles than these.
        BundleError: `old` is no bundle.
        StorageError: a file cannot be read or written.
    """
    with _opened(patch) as (file, head), Base(old) as base:
        if (head.target_sha256, head.target_size_bytes) != (wanted_sha256, wanted_size_bytes):
            raise DeltaError(
                f"{patch} makes another file than the one that is wanted",
                hint="fetch the whole bundle",
            )
        if (head.base_digest, head.base_size_bytes) != (base.digest(), base.size_bytes):
            raise DeltaError(
                f"{patch} is not for what lies in {old}", hint="fetch the whole bundle"
            )
        with storage.replacing(out) as target:
            sha256 = rebuild(file, head, base, target, check=check)
            if sha256 != wanted_sha256:
                raise DeltaError(
                    f"{patch} makes a file with sha256 {sha256}: it, or {old}, is damaged",
                    hint="fetch the whole bundle",
                )


def rebuild(
    file: BinaryIO,
    head: Head,
    base: Base,
    target: BinaryIO,
    *,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Write what all blocks of a delta make, and return its sha256.

    Args:
        file: the delta behind its head.
        target: is given at most `head.target_size_bytes`.
        check: called before each block.

    Raises:
        DeltaError: the delta is damaged, and was not before its damaged block.
    """
    digest = hashlib.sha256()
    left = head.target_size_bytes
    for _ in range(head.blocks):
        check()
        block = BlockHead.decode(file.read(BLOCK_HEAD_BYTES))
        if block.makes > left:
            raise damaged("it makes more than it says")
        left -= block.makes
        for part in _parts(_unpacked(file.read(block.packed), block), block, base):
            target.write(part)
            digest.update(part)
    if left or file.read(1):
        raise damaged("it makes less than it says, or goes on behind its last block")
    return digest.hexdigest()


def _unpacked(packed: bytes, block: BlockHead) -> bytes:
    """The payload of a block, after its compressed form was found to say its size rightly."""
    if len(packed) != block.packed:
        raise damaged("it is cut off")
    try:
        frame = zstandard.get_frame_parameters(packed)
        if frame.content_size != block.payload or frame.dict_id:
            raise damaged("a block unfolds to another size than it says")
        return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise damaged(f"a block does not unfold: {e}") from e


def _parts(payload: bytes, block: BlockHead, base: Base) -> list[bytes | memoryview]:
    """What the operations of a block make, in order."""
    operations = decode_operations(
        payload[: block.control], makes=block.makes, base_size_bytes=base.size_bytes
    )
    sections = Sections(operations, memoryview(payload)[block.control :])
    parts: list[bytes | memoryview] = []
    for operation in operations:
        kind, length, old = operation[:3]
        if kind == COPY:
            parts.append(base.read(old, length))
        elif kind == LITERAL:
            parts.append(sections.literal(operation))
        else:
            parts.append(planes.restore(base.read(old, length), sections.folded(operation)))
    return parts


@contextmanager
def _opened(patch: Path) -> Iterator[tuple[BinaryIO, Head]]:
    """A delta file behind its head, and that."""
    try:
        file = patch.open("rb")
    except OSError as e:
        raise StorageError(f"{patch} cannot be read: {e.strerror}") from e
    with file:
        try:
            raw = file.read(HEAD_BYTES)
        except OSError as e:
            raise StorageError(f"{patch} cannot be read: {e.strerror}") from e
        yield file, Head.decode(raw)
