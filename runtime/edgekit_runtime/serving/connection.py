"""Connection: one client's byte stream, read into the memory where the engine will find it.

Requests of a connection are answered in their order, one at a time; what a client sends ahead waits
in its socket. A client that is too slow, or gone, costs a buffer and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from edgekit_runtime.serving import http
from edgekit_runtime.serving.application import Application, Request
from edgekit_runtime.serving.body import Body
from edgekit_runtime.serving.http import Head, HttpError, Response

if TYPE_CHECKING:
    from edgekit_runtime.serving.lane import Lane

# A connection that waits longer gives its buffer back.
_KEPT_S = 1.0


class Connection(asyncio.BufferedProtocol):
    """One client. All of it runs on the event loop."""

    def __init__(self, application: Application, *, now: Callable[[], float]) -> None:
        self.on_lost: Callable[[], None] | None = None
        self._app = application
        self._room = application.room
        self._now = now
        self._transport: asyncio.Transport | None = None
        # Heads and small bodies; what lies between start and end was not looked at yet. There is
        # none while nothing comes: thousands of idle connections must not cost memory.
        self._buffer = bytearray()
        self._view = _EMPTY
        self._start = self._end = 0
        # The request that is being received or answered, and its body while that is on its way.
        self._head: Head | None = None
        self._body: Body | None = None
        # Bytes of the body, and of answers that the client does not take, as the room counts them.
        self._reserved = self._unsent = 0
        self._busy = self._running = False
        self._reading = self._writable = True
        # The next answer is the last; nothing more is sent; the client sends no more.
        self._last = self._ended = self._eof = False
        self.since = now()
        self.has_asked = False
        # The short way that the application offers for requests like the one it has now; and the
        # one that is taken, for requests that begin like this.
        self.offered: Lane | None = None
        self._lane: Lane | None = None
        self._prefix = b""
        self._generation = application.generation

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._app.opened(self):
            self._refuse(http.error(503, "too many connections"))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's interface
        body = self._body
        if body is not None and not self._ended:
            return body.memory[body.have :]
        if not self._buffer:
            self._buffer = bytearray(self._app.limits.head_bytes)
            self._view = memoryview(self._buffer)
        return self._view if self._ended else self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._ended:
            return
        body = self._body
        if body is not None:
            body.have += nbytes
            if not body.is_whole:
                return
        else:
            if self._start == self._end:
                self.since = self._now()
            self._end += nbytes
        self._run()

    def eof_received(self) -> bool:
        # A client may say that it sends no more and still wait for its answers; TLS knows no such
        # half-closed connection.
        self._eof = True
        return (self._busy or not self._writable) and self.info("sslcontext") is None

    def pause_writing(self) -> None:
        self._writable = False
        self.since = self._now()
        if self._transport is not None:
            self._unsent = self._transport.get_write_buffer_size()
            self._room.hold(self._unsent)

    def resume_writing(self) -> None:
        self._writable = True
        self._room.release(self._unsent)
        self._unsent = 0
        self._run()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        self._ended = True
        self._app.closed(self)
        self._room.release(self._reserved + self._unsent)
        self._reserved = self._unsent = 0
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    # What the application calls.

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return not self._busy and self._head is None and self._start == self._end

    def info(self, name: str) -> Any:
        """What the transport knows of the client: `peername`, `socket`; see asyncio."""
        assert self._transport is not None
        return self._transport.get_extra_info(name)

    def respond(self, response: Response) -> None:
        """Answer the request that was handed to the application."""
        head = self._head
        assert head is not None
        self.on_lost = None
        self.has_asked = True
        self._busy = False
        self._head = None
        if self._reserved:
            self._room.release(self._reserved)
            self._reserved = 0
        if self._ended:
            return
        if head.method == "HEAD":
            response = Response(response.status, response.head)
        self._send(response, last=self._last or not head.keep_alive)
        self.since = self._now()
        if self._start != self._end or self._eof:
            self._run()

    def reply(self, answer: bytes) -> None:
        """Answer a request that took the short way, by all bytes of an answer that is not last."""
        self.on_lost = None
        self.has_asked = True
        self._busy = False
        self._head = None
        if self._ended:
            return
        assert self._transport is not None
        self._transport.write(answer)
        if self._last:
            self._end_now()
            return
        self.since = self._now()
        if self._start != self._end or self._eof:
            self._run()

    def close(self) -> None:
        """Close now if nothing is under way, else after the next answer."""
        self._last = True
        if self.is_idle:
            self._end_now()

    def abort(self) -> None:
        """Close at once; an answer under way is lost."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def check(self, now: float) -> None:
        """Close a connection whose client takes longer than its limits allow."""
        limits, spent = self._app.limits, now - self.since
        if self._busy:
            return
        if self._ended or not self._writable:
            if spent > limits.send_s:
                self.abort()
        elif self.is_idle:
            if spent > limits.idle_s:
                self.close()
            elif spent > _KEPT_S and self._buffer:
                self._view.release()
                self._view, self._buffer = _EMPTY, bytearray()
        elif spent > limits.receive_s:
            self._refuse(http.error(408, "the request took too long to arrive"))

    # Sending.

    def _send(self, response: Response, *, last: bool) -> None:
        assert self._transport is not None
        tail = b"Connection: close\r\n\r\n" if last else b"\r\n"
        if response.is_large:
            self._transport.writelines([response.head + tail, *response.chunks])
        else:
            self._transport.write(b"".join((response.head, tail, *response.chunks)))
        if last:
            self._end_now()

    def _refuse(self, response: Response) -> None:
        """Answer outside of any request, and close: the stream cannot be read on."""
        if not self._ended:
            self._send(response, last=True)

    def _end_now(self) -> None:
        """Close once what was written is sent."""
        self._ended = True
        self.since = self._now()
        if self._transport is not None:
            self._transport.close()

    # Receiving.

    def _run(self) -> None:
        """Answer what was received, as long as there is a whole request and nobody waits."""
        if self._running:
            return
        self._running = True
        try:
            while not (self._busy or self._ended) and self._writable and self._receive():
                pass
        except HttpError as e:
            self._refuse(http.error(e.status, e.message))
        finally:
            self._running = False
        if self._ended:
            return
        waits = self._busy or not self._writable
        if self._eof and not waits:
            self._end_now()
        else:
            # Of what was sent ahead one buffer is kept; the rest waits in the socket.
            self._read(wanted=not self._eof and not (waits and self._start != self._end))

    def _receive(self) -> bool:
        """Take one step through the stream; whether another may be possible."""
        body = self._body
        if body is not None:
            if not body.is_whole:
                return False
            self._body = None
            self._hand_over(body.request())
            return True
        if self._start == self._end:
            return False
        lane = self._lane
        if lane is not None and self._buffer.startswith(self._prefix, self._start):
            return self._take(lane) or self._receive_head()
        return self._receive_head()

    def _take(self, lane: Lane) -> bool:
        """Let a request that is here take the short way; whether it could."""
        start = self._start + len(self._prefix)
        stop = start + lane.size_bytes
        if stop > self._end or not lane.is_open or self._room.is_full:
            return False
        if self._generation != self._app.generation:
            self._lane = None
            return False
        binary = bytes(self._view[start:stop])
        if stop == self._end:
            self._start = self._end = 0
        else:
            self._start = stop
        self._head = lane.head
        self._busy = True
        lane.take(binary, self)
        return True

    def _receive_head(self) -> bool:
        start, end = self._start, self._end
        stop = self._buffer.find(http.END_OF_HEAD, start, end)
        if stop < 0:
            self._make_room()
            return False
        if self._room.is_full:
            raise HttpError(503, "clients hold as many bytes as they may; ask again later")
        stop += len(http.END_OF_HEAD)
        raw = bytes(self._view[start:stop])
        head = self._head = self._app.parse(raw)
        body_end = stop + head.length
        if body_end > end:
            self._receive_body(head, stop)
            return True
        if body_end == end:
            self._start = self._end = 0
        else:
            self._start = body_end
        # All of it is here and small: two copies are cheaper than memory of its own.
        json_end = body_end if head.json_length is None else stop + head.json_length
        json, binary = bytes(self._view[stop:json_end]), bytes(self._view[json_end:body_end])
        self.offered = None
        self._hand_over(Request(head, json, binary, 0, len(binary)))
        self._remember(raw, json)
        return True

    def _remember(self, head: bytes, json: bytes) -> None:
        """Know the beginning of a request again that may take the short way."""
        if self.offered is not None:
            self._lane = self.offered
            self._prefix = head + json
            self._generation = self._app.generation

    def _hand_over(self, request: Request) -> None:
        self._busy = True
        self._app.handle(request, self)

    def _receive_body(self, head: Head, stop: int) -> None:
        """Allocate the memory that the rest of the body is received into."""
        limit = self._app.limits.body_bytes
        if head.length > limit:
            raise HttpError(413, f"a body has at most {limit} bytes, not {head.length}")
        if not self._room.reserve(head.length):
            raise HttpError(503, "as many bytes are on their way as may be; ask again later")
        self._reserved = head.length
        here = self._view[stop : self._end]
        self._body = Body(head, here, allocate=self._app.allocate)
        self._start = self._end = 0
        if head.expects_continue and len(here) == 0 and self._transport is not None:
            self._transport.write(http.CONTINUE)

    def _make_room(self) -> None:
        """Move the beginning of a head to the front of the buffer, which it must fit into."""
        if self._start:
            waiting = bytes(self._view[self._start : self._end])
            self._view[: len(waiting)] = waiting
            self._start, self._end = 0, len(waiting)
            self.since = self._now()
        if self._end == len(self._buffer):
            raise HttpError(431, f"a head has at most {len(self._buffer)} bytes")

    def _read(self, *, wanted: bool) -> None:
        if wanted == self._reading or self._transport is None:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


_EMPTY = memoryview(b"")
