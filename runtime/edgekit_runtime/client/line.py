"""Line: a program's end of the socket; what is said before memory is shared, rings and answers."""

from __future__ import annotations

import errno
import select
import socket
import time

import msgspec

from edgekit.errors import AccessDenied, DeadlineMissed, EdgekitError, ServingError, Unavailable
from edgekit_runtime import doorbell
from edgekit_runtime.client.look import Look
from edgekit_runtime.doorbell import ANSWER, MAX_PACKET_BYTES, NO_SLOT, REFUSED, Hello, Layout

_CONNECT_S = 10.0


class Gone(Unavailable):
    """The server is not there, or not any more: what was open must be opened again."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"no server answers at {path}",
            retry_after_s=1.0,
            hint="start one with --bell, or `bell` in the section [serve] of its configuration",
        )


class Line:
    """A socket with the server at `path`.

    Attributes:
        answers: packets that came and were not taken yet, by slot.

    Raises:
        Gone: no server is there.
        AccessDenied: this user may not ask it.
    """

    def __init__(self, path: str, *, look_us: int) -> None:
        self.answers: dict[int, bytes] = {}
        self._path = path
        self._look = Look(look_us)
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end.settimeout(_CONNECT_S)
        try:
            self._end.connect(path)
        except OSError as e:
            self._end.close()
            if e.errno in (errno.EACCES, errno.EPERM):
                raise AccessDenied(
                    f"{path} may not be written by this user", hint="join the group of the socket"
                ) from e
            raise Gone(path) from e
        self._poll = select.poll()
        self._poll.register(self._end, select.POLLIN)

    @property
    def is_open(self) -> bool:
        return self._end.fileno() >= 0

    def close(self) -> None:
        self._end.close()

    def greet(self, hello: Hello) -> Layout:
        """Say what is wanted; the layout of the memory that this takes."""
        packet = msgspec.json.encode(hello)
        try:
            self._end.send(packet)
        except OSError as e:
            raise self._parting() from e
        return doorbell.read_layout(self._hear())

    def share(self, fd: int) -> None:
        """Share memory; from here on slots can be rung for."""
        try:
            socket.send_fds(self._end, [doorbell.MAP], [fd])
        except OSError as e:
            raise self._parting() from e
        if self._hear() != doorbell.READY:
            raise ServingError(f"the server at {self._path} speaks another protocol")
        self._end.settimeout(None)

    def ring(self, packet: bytes) -> None:
        """Send a request, raising `Gone`."""
        try:
            self._end.send(packet)
        except OSError as e:
            raise self._lost() from e

    def receive(self, limit_s: float | None) -> None:
        """Wait for the next packet and put it into `answers`.

        Raises:
            DeadlineMissed: there was none within `limit_s`; the line is closed.
            Gone: the server ended.
        """
        try:
            packet = self._looked()
            if packet is None:
                if limit_s is not None and not self._poll.poll(limit_s * 1000):
                    self.close()
                    raise DeadlineMissed(
                        f"the server at {self._path} gave no answer within {limit_s:g} s",
                        hint="open the model again",
                    )
                packet = self._end.recv(MAX_PACKET_BYTES)
        except OSError as e:
            raise self._lost() from e
        if len(packet) < ANSWER.size:
            raise self._lost()
        number = ANSWER.unpack_from(packet)[0]
        if number == NO_SLOT:
            self.close()
            raise refused(packet)
        self.answers[number] = packet

    def _looked(self) -> bytes | None:
        """The next packet, if it comes while it is worth looking for."""
        look = self._look
        if not look.is_due():
            return None
        until_ns = time.perf_counter_ns() + look.limit_ns
        while (packet := self._waiting()) is None:
            if time.perf_counter_ns() >= until_ns:
                look.missed()
                return None
        look.found()
        return packet

    def _waiting(self) -> bytes | None:
        try:
            return self._end.recv(MAX_PACKET_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def _hear(self) -> bytes:
        try:
            packet = self._end.recv(MAX_PACKET_BYTES)
        except OSError as e:
            raise self._parting() from e
        if packet[: ANSWER.size] == ANSWER.pack(NO_SLOT, REFUSED):
            raise refused(packet)
        if not packet:
            raise Gone(self._path)
        return packet

    def _parting(self) -> EdgekitError:
        """What the server said before it left with something of ours unread.

        That is an error of the socket first, and can be read after it.
        """
        try:
            packet = self._end.recv(MAX_PACKET_BYTES, socket.MSG_DONTWAIT)
        except OSError:
            packet = b""
        return refused(packet) if len(packet) > ANSWER.size else Gone(self._path)

    def _lost(self) -> Gone:
        self.close()
        return Gone(self._path)


def refused(packet: bytes) -> EdgekitError:
    """What an answer that is a refusal says."""
    return doorbell.read_refusal(packet[ANSWER.size :]).error()
