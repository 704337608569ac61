"""Caller: a program that shares memory and rings; the server's end of its socket.

A ring is answered exactly once, with an answer or a refusal. Whatever a program sends, it harms
itself alone; when it goes, however it goes, its requests are dropped and its memory is unmapped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from edgekit.errors import EdgekitError, RequestError, ServingError, Unavailable
from edgekit_runtime import doorbell
from edgekit_runtime.doorbell import ANSWER, MAX_PACKET_BYTES, NO_SLOT, REFUSED, RING, Layout
from edgekit_runtime.serving.job import Job
from edgekit_runtime.serving.mapping import lay_out, map_memory
from edgekit_runtime.serving.ring import Slot

if TYPE_CHECKING:
    from edgekit_runtime.serving.infer import Inference
    from edgekit_runtime.serving.models import Models
    from edgekit_runtime.serving.served import Served

log = logging.getLogger(__name__)

_MAX_DESCRIPTORS = 4
_RETRY_S = 1.0


class Caller:
    """The server's end. Everything happens on the event loop.

    Args:
        end: connected, not blocking; `close` closes it.
        models: what can be asked.
        inference: runs the requests.
        alone: whether no other program asks anything.
        max_bytes: of the memory that it may share.
        closed: told at the end.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        models: Models,
        inference: Inference,
        alone: Callable[[], bool],
        max_bytes: int,
        closed: Callable[[Caller], None],
    ) -> None:
        self._end = end
        self._models = models
        self._inference = inference
        self._alone = alone
        self._max_bytes = max_bytes
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._is_retired = False
        self._hello = doorbell.Hello(model="")
        self._layout: Layout | None = None
        self._served: Served | None = None
        self._slots: tuple[Slot, ...] = ()
        self._rung_slot: Slot | None = None
        self._loop.add_reader(end, self._introduced)

    @property
    def is_ready(self) -> bool:
        """Whether it has shared its memory."""
        return bool(self._slots)

    def close(self) -> None:
        """Drop its requests, its memory and its socket."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._end)
        self._end.close()
        for slot in self._slots:
            slot.drop()
        self._slots = ()
        self._served = self._rung_slot = None
        self._closed(self)

    def retire(self) -> None:
        """Take no more requests, and close after the last answer."""
        self._is_retired = True
        if all(slot.is_idle for slot in self._slots):
            self.close()

    def dismiss(self, error: EdgekitError) -> None:
        """Tell the program why it is not served, and close."""
        self.fail(NO_SLOT, error)
        self.close()

    def send(self, packet: bytes) -> None:
        """Send it what comes next."""
        if not self._is_open:
            return
        try:
            self._end.send(packet)
        except OSError:
            # It is gone, or does not read its answers: its socket takes no more of them.
            self.close()
            return
        if self._is_retired:
            self.retire()

    def fail(self, slot: int, error: Exception) -> None:
        """A request was not answered."""
        if not isinstance(error, EdgekitError):
            request_id = secrets.token_hex(8)
            log.error("request failed", exc_info=error, extra={"request_id": request_id})
            error = ServingError(f"internal error; see the log for {request_id}")
        self.send(ANSWER.pack(slot, REFUSED) + msgspec.json.encode(doorbell.refusal(error)))

    # Before it is ready.

    def _introduced(self) -> None:
        try:
            packet, descriptors, flags, _ = socket.recv_fds(
                self._end, MAX_PACKET_BYTES, _MAX_DESCRIPTORS
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        try:
            if not packet:
                self.close()
            elif flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise RequestError(f"a packet has at most {MAX_PACKET_BYTES} bytes")
            elif self._layout is None:
                self._layout = self._welcome(packet)
                self.send(msgspec.json.encode(self._layout))
            else:
                self._share(packet, descriptors, self._layout)
        except EdgekitError as e:
            self.dismiss(e)
        finally:
            for fd in descriptors:
                os.close(fd)

    def _welcome(self, packet: bytes) -> Layout:
        self._hello = hello = doorbell.read_hello(packet)
        self._served = served = self._models.find(hello.model, hello.version)
        layout = lay_out(hello, served.inputs, served.outputs)
        if layout.size_bytes > self._max_bytes:
            raise RequestError(
                f"the tensors of {hello.slots} requests to {served.name} take {layout.size_bytes}"
                f" bytes, a program may share {self._max_bytes}",
                hint="open it with fewer rows or slots",
            )
        return layout

    def _share(self, packet: bytes, descriptors: list[int], layout: Layout) -> None:
        if packet != doorbell.MAP or len(descriptors) != 1:
            raise RequestError(f"the packet {doorbell.MAP.decode()!r} with one memory file is next")
        memory = map_memory(descriptors[0], layout)
        self._slots = tuple(
            Slot(number, layout, memory, variant=self._hello.variant, reply=self)
            for number in range(layout.slots)
        )
        self._loop.add_reader(self._end, self._rang)
        self.send(doorbell.READY)

    # Requests.

    def _rang(self) -> None:
        """A ring came, or the end."""
        try:
            # One byte more, to see that a packet is too long.
            packet = self._end.recv(RING.size + 1)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if len(packet) != RING.size:
            if packet:
                self.dismiss(RequestError(f"a ring has {RING.size} bytes"))
            else:
                self.close()
            return
        number, priority, timeout_us = RING.unpack(packet)
        try:
            self._request(number, priority, timeout_us)
        except Exception as e:  # noqa: BLE001 - one bad request must not end the server
            self.fail(number, e)

    def _request(self, number: int, priority: int, timeout_us: int) -> None:
        slots = self._slots
        if number >= len(slots):
            raise RequestError(f"there is no slot {number}, there are {len(slots)}")
        if self._is_retired:
            raise Unavailable("the server ends", retry_after_s=_RETRY_S)
        self._rung_slot = slot = slots[number]
        slot.ask(priority, timeout_us)
        hello = self._hello
        served = self._models.find(hello.model, hello.version)
        if served is self._served and slot.run_at_once(served):
            return
        alone = len(slots) == 1 and self._alone()
        try:
            self._inference.submit(hello.model, hello.version, self._make, alone=alone)
        except BaseException:
            slot.withdraw()
            raise

    def _make(self, served: Served) -> Job:
        """The request that was rung for last, to be run by `served`."""
        if served is not self._served:
            self.adopt(served)
        assert self._rung_slot is not None
        return self._rung_slot.make(served)

    def adopt(self, served: Served) -> None:
        """Let another version answer from now on, if its tensors lie as the old one's did.

        Raises `Changed` where they do not.
        """
        try:
            fits = lay_out(self._hello, served.inputs, served.outputs) == self._layout
        except RequestError:
            fits = False
        if not fits:
            raise doorbell.Changed(
                f"{served.name} {served.version} has other inputs or outputs than the version that"
                " was opened",
                hint="open the model again",
            )
        self._served = served
        for slot in self._slots:
            slot.unbind()
