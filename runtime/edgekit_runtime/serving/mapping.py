"""Mapping: memory that a local program shares, laid out for the tensors of a model.

The program owns the memory and may do with it what it likes, at any time. So the server maps only
a memory file that is sealed against shrinking (a page that is gone would kill the server: SIGBUS),
and an engine reads in place only what does no harm when it changes under its hands.

Source: memfd_create(2), and File Sealing in fcntl(2).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.doorbell import Hello, Layout, Place
from edgekit_runtime.engines.tensors import DTYPES, fits

# A cache line, and what the widest instructions of an engine's kernels want.
ALIGNMENT = 64
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_FLOATS = ("FP16", "FP32", "FP64")


def lay_out(hello: Hello, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Layout:
    """Place a model's tensors, each at a multiple of `ALIGNMENT`.

    Raises:
        RequestError: a tensor has no fixed size, or is asked for in a shape that it cannot have;
            the message names it.
    """
    known = {spec.name for spec in (*inputs, *outputs)}
    if unknown := sorted(set(hello.shapes) - known):
        raise RequestError(
            f"there is no input or output {unknown[0]!r}", hint=f"there is {', '.join(known)}"
        )
    end = 0
    placed: list[list[Place]] = []
    for what, specs in (("input", inputs), ("output", outputs)):
        places = []
        for spec in specs:
            place = _place(hello, spec, what=what, offset=end)
            end = _aligned(end + place.size_bytes)
            places.append(place)
        placed.append(places)
    # Also a slot whose tensors are all empty takes some memory, which can be mapped.
    return Layout(
        inputs=tuple(placed[0]),
        outputs=tuple(placed[1]),
        slot_bytes=max(end, ALIGNMENT),
        slots=hello.slots,
    )


def is_left_in_place(place: Place) -> bool:
    """Whether an engine may use a tensor where the program can change it meanwhile.

    What changes a value changes an answer, no more. But an index that is checked and then read
    again is another one, so that integers and booleans are copied, and so are vectors and
    scalars, which say how large a result is (of Resize and Range, for example).
    """
    return place.datatype in _FLOATS and len(place.shape) >= 2


def map_memory(fd: int, layout: Layout) -> mmap.mmap:
    """Map a program's memory file, raising `RequestError` where it is none, open or too small."""
    size = layout.size_bytes
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as e:
        raise RequestError("what was sent is no memory file", hint="make it by memfd_create") from e
    if seals & SEALS != SEALS:
        raise RequestError(
            "the memory file could shrink while the server reads it",
            hint="seal it with F_SEAL_SHRINK and F_SEAL_GROW before it is sent",
        )
    found = os.fstat(fd).st_size
    if found < size:
        raise RequestError(f"the memory file has {found} bytes, the layout takes {size}")
    if os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
        # The system may have none of them left when one is touched, which would kill, too.
        raise RequestError("the memory file has huge pages, which are not mapped here")
    try:
        return mmap.mmap(fd, size)
    except (OSError, ValueError) as e:
        raise RequestError(f"the memory file cannot be mapped: {e}") from e


def _place(hello: Hello, spec: TensorSpec, *, what: str, offset: int) -> Place:
    if spec.datatype == "BYTES":
        raise RequestError(
            f"{what} {spec.name!r} is BYTES, which has no fixed size", hint="ask over HTTP"
        )
    shape = hello.shapes.get(spec.name)
    if shape is None:
        shape = spec.shape
        if shape[:1] == (-1,):
            shape = (hello.rows, *shape[1:])
    if -1 in shape:
        whose = "the caller" if what == "input" else "the model"
        raise RequestError(
            f"{what} {spec.name!r} has shape {list(spec.shape)}, of which {whose} chooses sizes",
            hint=f"open it with shapes={{{spec.name!r}: ...}}, the largest that there will be",
        )
    if not fits(shape, spec):
        raise RequestError(
            f"{what} {spec.name!r} must have shape {list(spec.shape)}, it is opened with"
            f" {list(shape)}"
        )
    size = DTYPES[spec.datatype].itemsize
    for axis in shape:
        size *= axis
    return Place(
        name=spec.name, datatype=spec.datatype, shape=shape, offset=offset, size_bytes=size
    )


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT
