"""Sketch: counts of a window, small enough to travel, that add up over windows and devices.

Two sketches add up where they count in the bins of the same reference, which its sha256 tells.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.drift.reference import BINS, MAX_FEATURES
from edgekit.errors import MessageError
from edgekit.messages import DriftSketch


def pack(counts: NDArray[Any], *, reference: str, rows: int) -> DriftSketch:
    """Counts [features, 9] as they travel; a count beyond 32 bits stays at the largest."""
    raw = np.minimum(counts, np.iinfo(np.uint32).max).astype("<u4").tobytes()
    text = base64.b64encode(zlib.compress(raw, 9)).decode()
    return DriftSketch(reference=reference, rows=rows, counts=text)


def unpack(sketch: DriftSketch) -> NDArray[np.uint64]:
    """Counts [features, 9], raising `MessageError` where a sketch does not hold such."""
    limit = MAX_FEATURES * BINS * 4
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(base64.b64decode(sketch.counts, validate=True), limit + 1)
    except (zlib.error, ValueError) as e:
        raise MessageError(f"drift sketch: counts are not base64 of a zlib stream: {e}") from e
    if not stream.eof or len(raw) > limit or len(raw) % (BINS * 4):
        raise MessageError(f"drift sketch: counts are not whole features of {BINS} uint32")
    return np.frombuffer(raw, "<u4").reshape(-1, BINS).astype(np.uint64)


def merged(a: DriftSketch, b: DriftSketch) -> DriftSketch:
    """What two windows or devices saw together, raising `MessageError` for other bins."""
    if a.reference != b.reference:
        raise MessageError(
            "drift sketches of two references do not add up",
            hint="add up sketches of one bundle's digest",
        )
    return pack(unpack(a) + unpack(b), reference=a.reference, rows=a.rows + b.rows)
