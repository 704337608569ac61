"""HTTP/1.1, the part of it that a local inference server needs (RFC 9112), as pure functions.

A request's extent in the byte stream must have one reading only: a doubled or malformed
Content-Length, a Transfer-Encoding, a bare line feed and a folded header are refused, and the
connection is closed, because what follows could be read in two ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import msgspec

from edgekit_runtime.serving import tokens

END_OF_HEAD = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON = "application/json"
OCTETS = "application/octet-stream"
MAX_LENGTH_DIGITS = 15
MAX_REQUEST_ID_CHARS = 128

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (/[!-~]*) HTTP/1\.([01])\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*\Z")
_REASONS: Mapping[int, bytes] = {status.value: status.phrase.encode() for status in HTTPStatus}


class HttpError(Exception):
    """A request that cannot be answered as it asks; the connection is closed after the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of a request's head.

    Attributes:
        segments: of the path, without its query, percent-decoded; `/v2/models` is
            `("v2", "models")`.
        length: bytes of the body.
        json_length: how many of them are JSON, where binary tensors follow.
        token: digest of the bearer token; the token itself ends here.
        request_id: what the client calls the request, 1 to 128 printable characters; another
            `X-Request-Id` is passed over.
    """

    method: str
    segments: tuple[str, ...]
    length: int
    json_length: int | None
    keep_alive: bool
    expects_continue: bool
    host: str | None
    origin: str | None
    content_encoding: str | None
    token: bytes | None = None
    request_id: str | None = None


class Response(msgspec.Struct, frozen=True):
    """An answer.

    Attributes:
        head: without the blank line that ends it.
        chunks: the body.
        is_large: one more copy of the body would cost more than sending it in pieces.
    """

    status: int
    head: bytes
    chunks: tuple[bytes | memoryview, ...] = ()
    is_large: bool = False


def parse(raw: bytes) -> Head:
    """Read a head, its final blank line included, raising `HttpError`."""
    # RFC 9112, 2.2: an empty line before a request is ignored.
    text = raw.removeprefix(b"\r\n").removesuffix(END_OF_HEAD)
    request_line, *lines = text.split(b"\r\n")
    match = _REQUEST_LINE.match(request_line)
    if match is None:
        version = request_line.rpartition(b" ")[2]
        if version.startswith(b"HTTP/") and not version.startswith(b"HTTP/1."):
            raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        raise HttpError(400, "the request line is not METHOD /PATH HTTP/1.1")
    headers = _headers(lines)
    is_1_1 = match[3] == b"1"
    host = headers.get("host")
    if is_1_1 and host is None:
        raise HttpError(400, "there is no Host header")
    if (coding := headers.get("transfer-encoding")) is not None:
        status = 411 if coding.lower() == "chunked" else 501
        raise HttpError(status, f"transfer encoding {coding!r} is not taken; send Content-Length")
    length = _number(headers, "content-length") or 0
    json_length = _number(headers, "inference-header-content-length")
    if json_length is not None and json_length > length:
        raise HttpError(400, "Inference-Header-Content-Length is larger than Content-Length")
    expect = headers.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        raise HttpError(417, f"expectation {expect!r} cannot be met")
    options = [option.strip() for option in headers.get("connection", "").lower().split(",")]
    return Head(
        method=match[1].decode(),
        segments=_segments(match[2].decode()),
        length=length,
        json_length=json_length,
        keep_alive="close" not in options if is_1_1 else "keep-alive" in options,
        expects_continue=expect is not None and is_1_1,
        host=host,
        origin=headers.get("origin"),
        content_encoding=headers.get("content-encoding"),
        token=tokens.presented(headers.get("authorization", "")),
        request_id=_request_id(headers.get("x-request-id", "")),
    )


def response(
    status: int,
    body: bytes = b"",
    *,
    content_type: str = JSON,
    headers: Sequence[tuple[str, str]] = (),
) -> Response:
    """An answer with one body."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
    kind = f"Content-Type: {content_type}\r\n" if body else ""
    rest = f"{kind}{extra}Content-Length: {len(body)}\r\n".encode()
    head = b"HTTP/1.1 %d %b\r\n%b" % (status, _REASONS[status], rest)
    return Response(status, head, (body,) if body else ())


def json_response(status: int, value: Any, *, headers: Sequence[tuple[str, str]] = ()) -> Response:
    """An answer whose body is `value` as JSON."""
    return response(status, msgspec.json.encode(value), headers=headers)


def error(
    status: int, message: str, *, headers: Sequence[tuple[str, str]] = (), **facts: str
) -> Response:
    """An error as Open Inference Protocol v2 writes it: `{"error": message}`."""
    also = _ALSO.get(status)
    if also is not None and also[0] not in (name for name, _ in headers):
        headers = [*headers, also]
    return json_response(status, {"error": message, **facts}, headers=headers)


# What a client cannot act on an error without.
_ALSO = {401: ("WWW-Authenticate", "Bearer"), 503: ("Retry-After", "1")}


def named(response: Response, request_id: str | None) -> Response:
    """The same answer with the id that the client gave its request, if it gave one."""
    if request_id is None:
        return response
    head = b"%bX-Request-Id: %b\r\n" % (response.head, request_id.encode("ascii"))
    return msgspec.structs.replace(response, head=head)


def _headers(lines: Sequence[bytes]) -> dict[str, str]:
    """Headers by lower-case name; a repeated one is joined by commas (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.match(line)
        if match is None:
            raise HttpError(400, "a header line is not NAME: VALUE")
        name, value = match[1].decode().lower(), match[2].decode("latin-1")
        if name in headers:
            if name in _ONCE:
                raise HttpError(400, f"header {name} is given twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


_ONCE = frozenset(
    (
        "authorization",
        "content-length",
        "host",
        "inference-header-content-length",
        "origin",
        "transfer-encoding",
        "x-request-id",
    )
)


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    # `isdigit` alone also takes digits of other scripts.
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_LENGTH_DIGITS):
        raise HttpError(400, f"{name} is not a number of bytes")
    return int(text)


def _request_id(text: str) -> str | None:
    fits = text.isascii() and text.isprintable() and 1 <= len(text) <= MAX_REQUEST_ID_CHARS
    return text if fits else None


def _segments(target: str) -> tuple[str, ...]:
    path = target.partition("?")[0]
    return tuple(unquote(segment) for segment in path.strip("/").split("/"))
