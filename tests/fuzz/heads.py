"""Targets: heads of HTTP, and token files."""

from __future__ import annotations

from edgekit.errors import ConfigError
from edgekit_runtime.serving import http, tokens
from edgekit_runtime.serving.address import Tcp, may_speak
from tests.fuzz.target import Target, attempt


def head(raw: bytes) -> None:
    """A head has one reading, and nothing of it can break out of an answer's head."""
    found = attempt(lambda: http.parse(raw), http.HttpError)
    if isinstance(found, http.HttpError):
        assert 400 <= found.status < 600
        http.error(found.status, found.message)
        return
    text = raw.removeprefix(b"\r\n").removesuffix(http.END_OF_HEAD)
    names = [line.partition(b":")[0].lower() for line in text.split(b"\r\n")[1:]]
    assert text.count(b"\n") == text.count(b"\r") == len(names), "a line ends in one way only"
    assert b"transfer-encoding" not in names
    assert names.count(b"content-length") <= 1
    assert (b"content-length" in names) or found.length == 0
    assert 0 <= (found.json_length or 0) <= found.length
    assert found.token is None or len(found.token) == 32
    answer = http.named(http.response(200), found.request_id)
    assert (
        answer.head.count(b"\n") == answer.head.count(b"\r\n") == 2 + (found.request_id is not None)
    )
    for listener in (Tcp("127.0.0.1", 1), Tcp("0.0.0.0", 1)):
        may_speak(listener, host=found.host, origin=found.origin)


HEADS = [
    b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\r\nPOST /v2/models/a%20b/infer?q=1 HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 10\r\n"
    b"Inference-Header-Content-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nX-Request-Id: a-1\r\nOrigin: http://a.b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer abc==\r\nA: b\r\nA: c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"GET / HTTP/2.0\r\n\r\n",
]


WORDS = [
    b"\r\n", b"\r\n\r\n", b" HTTP/1.1", b" HTTP/1.0", b"Host: ", b"Content-Length: ", b"Expect: ",
    b"Inference-Header-Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"100-continue",
    b"Connection: ", b"close", b"keep-alive", b"X-Request-Id: ", b"Origin: ", b"Authorization: ",
    b"Bearer ", b"Content-Encoding: ", b"%00", b"%2f", b"[::1]", b"localhost", b"\xb2", b"\x85",
]  # fmt: skip


def token_lines(raw: bytes) -> None:
    """A token file is read, or a line is named; no message carries a token."""
    text = raw.decode("utf-8", "replace")
    found = attempt(lambda: tokens.parse(text, what="file"), ConfigError)
    if isinstance(found, ConfigError):
        secrets = [line.split()[1] for line in text.splitlines() if len(line.split()) > 1]
        long = [secret for secret in secrets if len(secret) >= tokens.MIN_TOKEN_CHARS]
        assert not any(secret in found.with_hint for secret in long)
        return
    assert len({token.name for token in found}) == len(found)
    assert all(tokens.find(found, token.digest) is token for token in found)
    assert tokens.find(found, None) is None


TOKEN_LINES = [
    b"# who\nfirst abcdefghijklmnopqrstuvwxyz0123\n\nsecond abcdefghijklmnopqrstuvwxyz== admin\n",
    b"short abc\n",
    b"a abcdefghijklmnopqrstuvwxyz012345 admim\n",
    b"a abcdefghijklmnopqrstuvwxyz012345\nb abcdefghijklmnopqrstuvwxyz012345\n",
]

TARGETS = {"head": Target(head, HEADS, WORDS), "tokens": Target(token_lines, TOKEN_LINES)}
