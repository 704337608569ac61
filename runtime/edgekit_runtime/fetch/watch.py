"""Watch: ends the waits of one connection from outside.

A time limit of a socket counts anew with each byte, and knows nobody who wants the download to end.
Promise: within about `LOOK_S` of a reason to end, whatever waits on the connection does so no more,
be it for a server that takes no connection, for TLS, for a head or for a body. The system's
resolver alone is not reached.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from types import TracebackType

from edgekit_runtime.fetch.answer import Passing

LOOK_S = 0.25
# `tcpi_bytes_received` of Linux' `struct tcp_info`, since 4.1: what came, whoever read it.
_RECEIVED = struct.Struct("=Q")
_RECEIVED_AT = 128


class Watch:
    """Looks at one connection from a thread of its own for as long as its block lasts.

    An error that comes of hanging up leaves the block as the reason for it.

    Args:
        check: raises where the download shall end; called from that thread.
        head_limit_s: for everything until the head of the answer is here, in seconds.
        limit_bytes: most that may come, heads and TLS included.

    Attributes:
        received_bytes: what came, when the block has ended; 0 where the system does not count.
    """

    def __init__(self, *, check: Callable[[], None], head_limit_s: float, limit_bytes: int) -> None:
        self.received_bytes = 0
        self._check = check
        self._head_limit_s = head_limit_s
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        # A second handle of the same connection: it stays valid whoever closes the first.
        self._handle: socket.socket | None = None
        self._has_head = False
        self._why: BaseException | None = None
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fetch-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._has_ended.set()
        self._thread.join()
        self.received_bytes = self._received()
        self._hold(None)
        is_of_the_link = isinstance(error, (HTTPException, OSError, Passing))
        if self._why is not None and is_of_the_link and error is not self._why:
            raise self._why from error

    def hold(self, sock: socket.socket) -> None:
        """Watch this socket from now on."""
        self._hold(sock.dup())

    def begun(self) -> None:
        """The head is here; raises what there is to end for, since one cut off reads as short."""
        self._has_head = True
        self.look()

    def look(self) -> None:
        """Raise what there is to end for."""
        if self._why is not None:
            raise self._why

    def _hold(self, handle: socket.socket | None) -> None:
        with self._lock:
            if self._handle is not None:
                self._handle.close()
            self._handle = handle

    def _run(self) -> None:
        begun_s = time.monotonic()
        while not self._has_ended.wait(LOOK_S):
            if self._why is None:
                self._why = self._reason(time.monotonic() - begun_s)
            if self._why is not None:
                # At each look anew: a socket that was about to connect does not hear it once.
                self._hang_up()

    def _reason(self, passed_s: float) -> BaseException | None:
        try:
            self._check()
        except BaseException as e:  # noqa: BLE001 - raised again where the connection is used
            return e
        if not self._has_head and passed_s >= self._head_limit_s:
            return TimeoutError(f"no answer had begun after {self._head_limit_s:g} s")
        if self._received() > self._limit_bytes:
            return Passing(f"it sent more than {self._limit_bytes} bytes")
        return None

    def _hang_up(self) -> None:
        # The other end may have closed it at the same moment, and it may not be connected yet.
        with self._lock, contextlib.suppress(OSError):
            if self._handle is not None:
                self._handle.shutdown(socket.SHUT_RDWR)

    def _received(self) -> int:
        with self._lock, contextlib.suppress(OSError):
            if self._handle is not None:
                size = _RECEIVED_AT + _RECEIVED.size
                info = self._handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
                if len(info) == size:
                    return int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0])
        return 0
