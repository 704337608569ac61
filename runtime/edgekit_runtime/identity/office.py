"""Office: the coordinator, asked over HTTP for a certificate.

What it answers is checked by whoever asks; here only size and time are bounded. A refusal is an
error of its own, for asking again does not help; all else may pass.
"""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from edgekit.clock import Clock
from edgekit.enrolment import MAX_ANSWER_BYTES
from edgekit.errors import FleetError, LinkError, UntrustedError, UsageError
from edgekit_runtime.fetch.connection import tls_context

# Base64 and JSON around an answer.
_MOST_BYTES = 2 * MAX_ANSWER_BYTES
_STEP_TIMEOUT_S = 15.0
_LIMIT_S = 60.0


class Refused(FleetError):
    """The coordinator understood, and will not."""


class _Failure(msgspec.Struct):
    error: str
    hint: str | None = None


class Office(NamedTuple):
    """A coordinator.

    Attributes:
        url: `http://HOST:PORT` or `https://…`.
        clock: for time limits.
        ca: file of certificates that are trusted beside the system's, for https.
    """

    url: str
    clock: Clock
    ca: Path | None = None

    def post(self, path: str, body: bytes) -> bytes:
        """The answer to one request.

        Raises:
            UsageError: the URL is not one.
            ConfigError: `ca` is not a file of certificates.
            UntrustedError: no authority that is trusted here vouches for who answers.
            LinkError: nothing answers, or not as a coordinator does.
            Refused: it will not.
        """
        connection, base = self._connection()
        try:
            connection.request("POST", base + path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            content = self._read(answer)
        except ssl.SSLCertVerificationError as e:
            raise UntrustedError(
                f"the certificate of {self.url} is not trusted here: {e.verify_message}",
                hint="--ca FILE names the authority that issued it; a wrong clock can be why, too",
            ) from e
        except (OSError, http.client.HTTPException) as e:
            raise LinkError(
                f"no coordinator answers at {self.url}: {str(e) or type(e).__name__}",
                hint="--coordinator names the coordinator's address",
            ) from e
        finally:
            connection.close()
        if answer.status != 200:
            raise self._failure(answer.status, content)
        return content

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(self.url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as e:
            raise UsageError(f"coordinator {self.url!r}: {e}") from e
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError(
                f"{self.url!r} is not a coordinator's address", hint="http://HOST:8601 for example"
            )
        base = parts.path.rstrip("/")
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=_STEP_TIMEOUT_S), base
        secure = http.client.HTTPSConnection(
            host, port, timeout=_STEP_TIMEOUT_S, context=tls_context(self.ca)
        )
        return secure, base

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        """The body, however slowly it comes, within limits of size and time."""
        deadline_s = self.clock.monotonic() + _LIMIT_S
        content = bytearray()
        while chunk := answer.read1(65_536):
            content += chunk
            if len(content) > _MOST_BYTES or self.clock.monotonic() > deadline_s:
                raise LinkError(f"{self.url} answers without end")
        return bytes(content)

    def _failure(self, status: int, content: bytes) -> Refused | LinkError:
        try:
            failure = msgspec.json.decode(content, type=_Failure)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return LinkError(
                f"{self.url} answered {status}, and not as a coordinator does",
                hint="--coordinator names the coordinator's address",
            )
        if status >= 500:
            return LinkError(f"{self.url}: {failure.error}", hint=failure.hint)
        return Refused(f"the coordinator refuses: {failure.error}", hint=failure.hint)
