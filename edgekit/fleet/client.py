"""Client: how commands talk to a coordinator. Its errors come back as the errors they were."""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from edgekit import errors, terminal
from edgekit.errors import EdgekitError, FleetError, LinkError, StorageError, UsageError

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8600"
TIMEOUT_S = 60.0
# A large bundle is received, hashed and verified before the answer comes.
UPLOAD_TIMEOUT_S = 900.0


class Failure(msgspec.Struct, frozen=True):
    """The body of an answer that is an error."""

    error: str
    kind: str = "FleetError"
    hint: str | None = None


class Client:
    """A coordinator at a URL; one connection for each request.

    Raises (every method):
        LinkError: nothing answers there.
        EdgekitError: whatever the coordinator raised, of the same class.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise UsageError(
                f"{url!r} is not a coordinator's address", hint=f"for example {DEFAULT_URL}"
            )
        self._url = url
        self._host, self._port = parts.hostname, parts.port or 80

    def get(self, path: str, kind: type[T]) -> T:
        return self._decode(self._ask("GET", path, None), kind)

    def post(self, path: str, body: object, kind: type[T]) -> T:
        return self._decode(self._ask("POST", path, msgspec.json.encode(body)), kind)

    def send_file(self, path: str, file: Path, kind: type[T]) -> T:
        """Send a file as it is, without holding it in memory."""
        return self._decode(self._ask("PUT", path, file), kind)

    def _ask(self, method: str, path: str, body: bytes | Path | None) -> bytes:
        timeout_s = UPLOAD_TIMEOUT_S if isinstance(body, Path) else TIMEOUT_S
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            if isinstance(body, Path):
                _send(connection, method, path, body)
            else:
                connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise LinkError(
                f"no coordinator answers at {self._url}: {str(e) or type(e).__name__}",
                hint="edgekit coordinator starts one; --coordinator names another",
            ) from e
        finally:
            connection.close()
        if answer.status >= 400:
            raise self._failure(answer.status, content)
        return content

    def _failure(self, status: int, content: bytes) -> EdgekitError:
        try:
            failure = msgspec.json.decode(content, type=Failure)
        except msgspec.MsgspecError:
            return FleetError(
                f"{self._url} answered {status}, and not as a coordinator does",
                hint="--coordinator names the coordinator's address",
            )
        kind = getattr(errors, failure.kind, FleetError)
        known = isinstance(kind, type) and issubclass(kind, EdgekitError)
        # `Overloaded` alone takes more than a message, and no coordinator raises it.
        plain = kind if known and kind is not errors.Overloaded else FleetError
        made: EdgekitError = plain(failure.error, hint=failure.hint)
        return made

    def _decode(self, content: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.MsgspecError as e:
            raise FleetError(
                f"{self._url} answered something else than expected: {e}",
                hint="use the same version of edgekit here and there",
            ) from e


def _send(connection: http.client.HTTPConnection, method: str, path: str, file: Path) -> None:
    try:
        opened = file.open("rb")
    except OSError as e:
        raise StorageError(f"{file} cannot be read: {e.strerror}") from e
    with opened:
        size = os.fstat(opened.fileno()).st_size
        headers = {"content-length": str(size), "content-type": "application/octet-stream"}
        try:
            connection.request(method, path, opened, headers)
        except BrokenPipeError:
            # The coordinator refused before it had read everything; its answer says why.
            return


def show(document: Any, *, as_json: bool, lines: list[str]) -> None:
    """Print a result: one JSON document, or lines for people."""
    raw = msgspec.json.encode(document).decode() if as_json else ""
    text = terminal.plain_json(raw) if as_json else _plain(lines)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(lines: list[str]) -> None:
    """Tell people something beside the result, on stderr."""
    sys.stderr.write(_plain(lines) + "\n")
    sys.stderr.flush()


def _plain(lines: list[str]) -> str:
    return terminal.plain_lines("\n".join(lines))
