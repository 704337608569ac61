"""Model: one that is open on the server, and the memory that is shared for it."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RequestError, UsageError
from edgekit_runtime.client.line import Line, refused
from edgekit_runtime.doorbell import ANSWER, REFUSED, RING, Hello, Layout

Arrays = Mapping[str, NDArray[Any]]

MAX_TIMEOUT_S = 3600.0
LOWEST_PRIORITY = 9
# Beyond a deadline, for the server to say that it was missed.
GRACE_S = 2.0
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class AnsweredBy(NamedTuple):
    """What gave an answer."""

    version: str
    variant: str


class Slot:
    """Memory for one request at a time.

    Attributes:
        inputs: arrays to write into, by name.
        answered_by: version and variant that gave the last answer; `None` before it.
    """

    def __init__(self, line: Line, number: int, layout: Layout, memory: mmap.mmap) -> None:
        start = number * layout.slot_bytes
        inputs, outputs = (
            {place.name: place.view(memory, start) for place in places}
            for places in (layout.inputs, layout.outputs)
        )
        self.inputs: Arrays = MappingProxyType(inputs)
        self.answered_by: AnsweredBy | None = None
        self._outputs: Arrays = MappingProxyType(outputs)
        self._line = line
        self._number = number
        self._is_started = False
        self._limit_s: float | None = None
        # An answer that tells nothing new.
        self._usual = b""

    def put(self, arrays: Arrays) -> None:
        """Copy inputs into the memory, raising `RequestError` for one that does not fit."""
        for name, place in self.inputs.items():
            if name not in arrays:
                raise RequestError(f"input {name!r} is missing")
            array = arrays[name]
            if array.dtype != place.dtype or array.shape != place.shape:
                raise RequestError(
                    f"input {name!r} must be {place.dtype} {list(place.shape)}, it is"
                    f" {array.dtype} {list(array.shape)}"
                )
            np.copyto(place, array)

    def run(self, *, timeout_s: float | None = None, priority: int = 0) -> Arrays:
        """Run what stands in `inputs`.

        Args:
            timeout_s: the answer is of no use later; seconds, at most 3600.
            priority: 1 is the highest, 9 the lowest, 0 stands for the middle.

        Returns:
            arrays by name; they are views of the memory, and change with the next request.

        Raises:
            DeadlineMissed: it was not answered in time.
            Overloaded: too many requests wait; `retry_after_s` says when to ask again.
            Unavailable: no variant of the model can run now.
            Changed: the server has a version with other tensors now; open the model again.
            Gone: the server ended.
            NotServed: the model, or its version or variant, is not served any more.
            EngineError: the engine refused.
        """
        self.start(timeout_s=timeout_s, priority=priority)
        return self.wait()

    def start(self, *, timeout_s: float | None = None, priority: int = 0) -> None:
        """Send a request off; `wait` gives its answer. Arguments are those of `run`."""
        if self._is_started:
            raise UsageError(f"slot {self._number} is under way: wait for its answer first")
        timeout_us = 0
        if timeout_s is not None:
            if not 0 < timeout_s <= MAX_TIMEOUT_S:
                raise UsageError(f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S:g}")
            timeout_us = max(1, int(timeout_s * 1e6))
        if not 0 <= priority <= LOWEST_PRIORITY:
            raise UsageError(f"priority must be 1, the highest, to {LOWEST_PRIORITY}, or 0")
        self._limit_s = None if timeout_s is None else timeout_s + GRACE_S
        self._line.ring(RING.pack(self._number, priority, timeout_us))
        self._is_started = True

    def wait(self) -> Arrays:
        """The answer to `start`; returns and raises what `run` does."""
        if not self._is_started:
            raise UsageError(f"slot {self._number} was not started")
        answers = self._line.answers
        while self._number not in answers:
            self._line.receive(self._limit_s)
        packet = answers.pop(self._number)
        self._is_started = False
        if packet == self._usual:
            return self._outputs
        if ANSWER.unpack_from(packet)[1] == REFUSED:
            raise refused(packet)
        version, variant, *rest = packet[ANSWER.size :].decode().split(" ", 2)
        self.answered_by = AnsweredBy(version, variant)
        if not rest:
            self._usual = packet
            return self._outputs
        shapes = msgspec.json.decode(rest[0], type=dict[str, tuple[int, ...]])
        return {
            name: np.ndarray(shapes[name], place.dtype, place) if name in shapes else place
            for name, place in self._outputs.items()
        }


class Model:
    """An open model. To be used by one thread at a time; made by `Client.open`.

    Attributes:
        name: of the model.
        slots: memory for requests, each for one at a time. The attributes and methods of the model
            itself are those of the first.
    """

    def __init__(self, path: str, hello: Hello, *, look_us: int) -> None:
        self.name = hello.model
        self._line = line = Line(path, look_us=look_us)
        try:
            layout = line.greet(hello)
            memory, fd = _memory(layout.size_bytes, self.name)
            try:
                line.share(fd)
            finally:
                os.close(fd)
        except BaseException:
            line.close()
            raise
        self.slots = tuple(Slot(line, number, layout, memory) for number in range(layout.slots))

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        return self._line.is_open

    @property
    def inputs(self) -> Arrays:
        """Arrays to write a request's inputs into, by name."""
        return self.slots[0].inputs

    @property
    def answered_by(self) -> AnsweredBy | None:
        """Version and variant that gave the last answer."""
        return self.slots[0].answered_by

    def run(self, *, timeout_s: float | None = None, priority: int = 0) -> Arrays:
        """Run what stands in `inputs`; see `Slot.run`."""
        return self.slots[0].run(timeout_s=timeout_s, priority=priority)

    def close(self) -> None:
        """Ask nothing more. Arrays keep what they hold; nobody else has them any more."""
        self._line.close()


def _memory(size_bytes: int, name: str) -> tuple[mmap.mmap, int]:
    """Memory, and its file, which can neither shrink nor grow any more."""
    fd = os.memfd_create(f"edgekit {name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return mmap.mmap(fd, size_bytes), fd
    except BaseException:
        os.close(fd)
        raise
