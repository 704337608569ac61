"""The form of a delta file: its head, its blocks and their operations. docs/delta.md gives it to
the byte.

A block makes at most `BLOCK_BYTES` of the new file from its own payload and from the old bundle,
and needs nothing of the blocks before it. Every length and offset is checked against a limit or
against what is there before anything of that size is taken.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from edgekit.container import MAX_FILE_BYTES
from edgekit.errors import BundleError
from edgekit.structs import Strict

MAGIC = b"EDGEDLTA"
VERSION = 1
BLOCK_BYTES = 1 << 20
MAX_CONTROL_BYTES = 1 << 16
MAX_PAYLOAD_BYTES = BLOCK_BYTES + MAX_CONTROL_BYTES
# What zstd makes at most of a payload that it cannot shrink, with room to spare.
MAX_PACKED_BYTES = MAX_PAYLOAD_BYTES + (MAX_PAYLOAD_BYTES >> 7) + 128
MAX_BLOCKS = 1 << 14

COPY, LITERAL, BYTES, SPARSE = 0, 1, 2, 6
WIDTHS = {BYTES: 1, 3: 2, 4: 4, 5: 8}
"""Operations that add a difference to each element, and the bytes of one element."""
FAR = 255
"""A gap byte that another one follows."""

_HEAD = struct.Struct("<8sHHIQ32s32s32sQ")
HEAD_BYTES = _HEAD.size
_BLOCK = struct.Struct("<IIII")
BLOCK_HEAD_BYTES = _BLOCK.size
_KIND_BITS = 3
_MAX_VARINT_BYTES = 6
_HINT = "fetch the whole bundle"


class DeltaError(BundleError):
    """A delta is damaged, is for another bundle, or does not rebuild what it should."""


class NotSmaller(DeltaError):
    """A delta would save next to nothing of the bundle itself."""


class Head(Strict, frozen=True, kw_only=True):
    """What a delta says of itself.

    Attributes:
        base_digest: of the bundle that it starts from, `sha256:` and 64 hex digits.
        base_size_bytes: of all its entries together.
        digest: of the bundle that it makes.
        target_sha256: of the `.edge` file that it makes, 64 hex digits.
        target_size_bytes: of that file.
        blocks: how many follow.
    """

    base_digest: str
    base_size_bytes: int
    digest: str
    target_sha256: str
    target_size_bytes: int
    blocks: int

    def encode(self) -> bytes:
        """The bytes that begin a delta file."""
        return _HEAD.pack(
            MAGIC, VERSION, 0, self.blocks, self.base_size_bytes,
            _raw(self.base_digest), _raw(self.digest), _raw(self.target_sha256),
            self.target_size_bytes,
        )  # fmt: skip

    @classmethod
    def decode(cls, raw: bytes) -> Head:
        """Read the first `HEAD_BYTES` of a file, raising `DeltaError` where they are no head."""
        if len(raw) < HEAD_BYTES or not raw.startswith(MAGIC):
            raise damaged("it does not begin like one")
        _, version, flags, blocks, base_size, base, digest, target, size = _HEAD.unpack_from(raw)
        if (version, flags) != (VERSION, 0):
            raise damaged(f"format {version} with flags {flags} is not known here")
        if not (0 < size <= MAX_FILE_BYTES and base_size <= MAX_FILE_BYTES):
            raise damaged(f"it speaks of {base_size} and {size} bytes")
        if not 0 < blocks <= min(MAX_BLOCKS, size):
            raise damaged(f"it has {blocks} blocks for {size} bytes")
        return cls(
            base_digest=f"sha256:{base.hex()}",
            base_size_bytes=base_size,
            digest=f"sha256:{digest.hex()}",
            target_sha256=target.hex(),
            target_size_bytes=size,
            blocks=blocks,
        )


class BlockHead(NamedTuple):
    """Sizes of one block, in bytes: what it makes, and of its payload the operations at the front,
    all of it, and all of it compressed."""

    makes: int
    control: int
    payload: int
    packed: int

    def encode(self) -> bytes:
        return _BLOCK.pack(*self)

    @classmethod
    def decode(cls, raw: bytes) -> BlockHead:
        """Read the head of a block, raising `DeltaError` where it breaks a limit."""
        if len(raw) != BLOCK_HEAD_BYTES:
            raise damaged("it is cut off")
        head = cls(*_BLOCK.unpack(raw))
        fits = (
            0 < head.makes <= BLOCK_BYTES
            and 0 < head.control <= min(MAX_CONTROL_BYTES, head.payload)
            and head.payload <= head.control + head.makes
            and 0 < head.packed <= MAX_PACKED_BYTES
        )
        if not fits:
            raise damaged(f"a block has the sizes {tuple(head)}")
        return head


class Operation(NamedTuple):
    """How the next bytes of the new file are made.

    Attributes:
        kind: `COPY`, `LITERAL`, one of `WIDTHS`, or `SPARSE`, which adds differences to few bytes.
        length: bytes to make; a multiple of the width.
        old: where in the old bundle they come from; 0 for a literal.
        gaps: bytes that say which differ; 0 but for `SPARSE`.
        values: bytes that differ; 0 but for `SPARSE`.
    """

    kind: int
    length: int
    old: int
    gaps: int = 0
    values: int = 0


def encode_operations(operations: Sequence[Operation]) -> bytes:
    """Operations of one block as its control bytes."""
    out = bytearray()
    expected = 0
    for kind, length, old, gaps, values in operations:
        _put(out, length << _KIND_BITS | kind)
        if kind != LITERAL:
            step = old - expected
            _put(out, step << 1 if step >= 0 else (-step << 1) - 1)
            expected = old + length
        if kind == SPARSE:
            _put(out, gaps)
            _put(out, values)
    return bytes(out)


def decode_operations(control: bytes, *, makes: int, base_size_bytes: int) -> list[Operation]:
    """Operations of a block, which together make exactly `makes` bytes from within the base.

    Raises:
        DeltaError: one of them is not known, or reads or makes what it may not.
    """
    operations = []
    position = expected = made = 0
    while position < len(control):
        word, position = _take(control, position)
        kind, length = word & (1 << _KIND_BITS) - 1, word >> _KIND_BITS
        width = WIDTHS.get(kind, 1)
        if kind > SPARSE or not 0 < length <= makes - made or length % width:
            raise damaged(f"an operation of kind {kind} makes {length} bytes")
        old = gaps = values = 0
        if kind != LITERAL:
            step, position = _take(control, position)
            old = expected + (-(step + 1 >> 1) if step & 1 else step >> 1)
            if not 0 <= old <= base_size_bytes - length:
                raise damaged(f"an operation reads {length} bytes at {old} of {base_size_bytes}")
            expected = old + length
        if kind == SPARSE:
            gaps, position = _take(control, position)
            values, position = _take(control, position)
            if not 0 < values <= gaps <= length or gaps + values > length:
                raise damaged(f"{values} of {length} bytes differ, found by {gaps}")
        made += length
        operations.append(Operation(kind, length, old, gaps, values))
    if made != makes:
        raise damaged(f"a block makes {made} bytes of {makes}")
    return operations


def damaged(why: str) -> DeltaError:
    """The error for a file that no maker of deltas writes."""
    return DeltaError(f"the delta is damaged: {why}", hint=_HINT)


def _put(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _take(raw: bytes, position: int) -> tuple[int, int]:
    number = 0
    for count in range(_MAX_VARINT_BYTES):
        if position + count >= len(raw):
            raise damaged("an operation is cut off")
        byte = raw[position + count]
        number |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return number, position + count + 1
    raise damaged("a number of an operation is too long")


def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))
