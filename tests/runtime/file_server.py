"""A real HTTP server for one file, that misbehaves on demand."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable
from random import Random
from types import TracebackType

DATA = Random(1).randbytes(300_000)
Handler = http.server.BaseHTTPRequestHandler
Behaviour = Callable[[Handler, int], None]


class FileServer:
    """Answers each request with the next behaviour of a list, the last one again and again.

    Attributes:
        behaviours: called with the request and the first byte that it asks for.
        offsets: first bytes that were asked for, by request.
        paths: what was asked for, by request.
        headers: of the requests.
    """

    def __init__(self, *behaviours: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self.behaviours: list[Behaviour] = list(behaviours) or [whole]
        self.offsets: list[int] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Answer(Handler):
            def do_GET(self) -> None:
                text = self.headers.get("Range", "bytes=0-")
                offset = int(text.removeprefix("bytes=").rstrip("-"))
                outer.offsets.append(offset)
                outer.paths.append(self.path.lstrip("/"))
                outer.headers.append(dict(self.headers))
                behaviours = outer.behaviours
                act = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
                act(self, offset)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep quiet."""

        self._server = _Quiet(("127.0.0.1", 0), Answer)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.address = ("127.0.0.1", int(self._server.server_address[1]))
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.address[1]}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests are about."""


def whole(
    request: Handler, offset: int, *, data: bytes = DATA, end: int | None = None, etag: str = ""
) -> None:
    """As it should be; `end` closes the connection before that byte."""
    request.send_response(206 if offset else 200)
    if offset:
        request.send_header("Content-Range", f"bytes {offset}-{len(data) - 1}/{len(data)}")
    if etag:
        request.send_header("ETag", etag)
    request.send_header("Content-Length", str(len(data) - offset))
    request.end_headers()
    request.wfile.write(data[offset:end])


def files(held: dict[str, bytes]) -> Behaviour:
    """Several files by their path; 404 for any other."""

    def answer(request: Handler, offset: int) -> None:
        data = held.get(request.path.lstrip("/"))
        if data is None:
            says(404)(request, offset)
        else:
            whole(request, offset, data=data)

    return answer


def cut(request: Handler, offset: int) -> None:
    """The connection ends after 100,000 bytes."""
    whole(request, offset, end=offset + 100_000)


def without_ranges(request: Handler, _: int) -> None:
    """The whole file, whatever was asked."""
    whole(request, 0)


def cut_without_ranges(request: Handler, _: int) -> None:
    """The same, and the connection ends after 100,000 bytes."""
    whole(request, 0, end=100_000)


def another_file(request: Handler, offset: int) -> None:
    """Bytes of the right number, and not the right ones."""
    whole(request, offset, data=DATA[::-1])


def endless(request: Handler, _: int) -> None:
    """A body that says no length and has no end."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    try:
        while True:
            request.wfile.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
    except OSError:
        return


def says(status: int, **headers: str) -> Behaviour:
    """An answer without a body."""

    def answer(request: Handler, _: int) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def encoded(request: Handler, _: int) -> None:
    """Compressed, although nobody asked for that."""
    request.send_response(200)
    request.send_header("Content-Encoding", "gzip")
    request.send_header("Content-Length", str(len(DATA)))
    request.end_headers()
    request.wfile.write(DATA)


def garbage(request: Handler, _: int) -> None:
    """Nothing that HTTP knows."""
    request.wfile.write(b"\x00\xff not http at all\r\n\r\n")


def silent(request: Handler, _: int) -> None:
    """Neither an answer nor an end."""
    request.connection.recv(1)


def drips_heads(request: Handler, _: int) -> None:
    """A head that never ends, byte by byte."""
    _drip(request, b"HTTP/1.1 200 OK\r\nX: ")


def drips(request: Handler, offset: int) -> None:
    """A body that comes byte by byte."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n"
    if offset:
        place = f"bytes {offset}-{len(DATA) - 1}/{len(DATA)}"
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: {place}\r\n\r\n"
    _drip(request, head.encode(), DATA[offset:])


def _drip(request: Handler, head: bytes, body: bytes = b"x" * 100_000) -> None:
    pause = threading.Event()
    try:
        request.wfile.write(head)
        for byte in body:
            request.wfile.write(bytes([byte]))
            if pause.wait(0.02):
                return
    except OSError:
        return
