"""Attempt: one request for what is missing of a file, and what came of it on the disk."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from http.client import HTTPResponse
from typing import NamedTuple
from urllib.parse import SplitResult

from edgekit_runtime.fetch import answer
from edgekit_runtime.fetch.answer import Passing
from edgekit_runtime.fetch.connection import Connection
from edgekit_runtime.fetch.pace import Bucket, Pulse
from edgekit_runtime.fetch.part import Part, Writer
from edgekit_runtime.fetch.patience import Patience

CHUNK_BYTES = 1 << 18

Progress = Callable[[float], None]


class TooSlow(Passing):
    """A connection delivers less than a download can live on."""


class Link(NamedTuple):
    """How a device uses its link.

    Attributes:
        idle_timeout_s: how long a connection may be silent.
        bandwidth_bytes_s: most bytes a second; `None` is no limit.
        slowest_bytes_s: where another mirror could be asked, a slower one is left.
        slow_window_s: over which that is judged.
    """

    idle_timeout_s: float = 30.0
    bandwidth_bytes_s: int | None = None
    slowest_bytes_s: float = 1024.0
    slow_window_s: float = 30.0

    @property
    def chunk_bytes(self) -> int:
        """Most that is read at a time: with a limit, what it lets through in a quarter second."""
        if self.bandwidth_bytes_s is None:
            return CHUNK_BYTES
        return max(4096, min(CHUNK_BYTES, self.bandwidth_bytes_s // 4))

    @property
    def window_bytes(self) -> int | None:
        """Most that the kernel may take in ahead of the reader; `None` leaves it to the kernel."""
        return None if self.bandwidth_bytes_s is None else self.chunk_bytes


class Attempt:
    """Asks servers for the rest of one file.

    Args:
        part: the file.
        what: names it in messages.
        link: how the link is used.
        bucket: the limit of the bandwidth, shared by all downloads.
        tls: whom to trust, for `https`.
        patience: how long it may take.
        progress: called with the share that is here.
    """

    def __init__(
        self,
        part: Part,
        *,
        what: str,
        link: Link,
        bucket: Bucket | None,
        tls: ssl.SSLContext | None,
        patience: Patience,
        progress: Progress,
    ) -> None:
        self._part = part
        self._what = what
        self._link = link
        self._bucket = bucket
        self._tls = tls
        self._patience = patience
        self._progress = progress

    def run(self, url: SplitResult, *, may_be_slow: bool) -> None:
        """Ask one server; returns when the file is whole, or the window closed.

        Args:
            url: where to ask.
            may_be_slow: whether a connection that drips is better than none.

        Raises:
            UpdateFailed: this server's answer will not pass, or the time is over.
            Passing, OSError, HTTPException: it may pass.
            Interrupted: somebody asked the download to end.
            StorageError: the disk takes no more.
        """
        asked = self._part.held_bytes()
        connection = Connection(
            url,
            timeout_s=self._link.idle_timeout_s,
            tls=self._tls,
            window_bytes=self._link.window_bytes,
        )
        # Both closed: a connection that ends with its answer has let go of it.
        with (
            closing(connection),
            connection.ask(url, self._headers(url, asked)) as response,
            self._writing(response, url, asked) as writer,
        ):
            self._copy(response, writer, may_be_slow=may_be_slow)

    def _writing(
        self, response: HTTPResponse, url: SplitResult, asked: int
    ) -> AbstractContextManager[Writer]:
        def header(name: str) -> str:
            return response.getheader(name, "")

        offset = answer.begins_at(
            response.status, header, asked=asked, size_bytes=self._part.size_bytes, what=self._what
        )
        return self._part.writing(offset, url=url.geturl(), etag=answer.etag(header))

    def _headers(self, url: SplitResult, asked: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgekitd"}
        if asked:
            headers["Range"] = f"bytes={asked}-"
            if etag := self._part.etag(url.geturl()):
                # A file that was replaced comes whole, instead of as a tail that does not fit.
                headers["If-Range"] = etag
        return headers

    def _copy(self, response: HTTPResponse, writer: Writer, *, may_be_slow: bool) -> None:
        size_bytes = self._part.size_bytes
        pulse = Pulse(
            self._link.slowest_bytes_s,
            window_s=self._link.slow_window_s,
            now_s=self._patience.now_s(),
        )
        while writer.position < size_bytes:
            chunk = response.read1(min(self._link.chunk_bytes, size_bytes - writer.position))
            if not chunk:
                raise Passing(f"the connection ended at {writer.position} of {size_bytes}")
            writer.put(chunk)
            self._progress(writer.held_bytes / size_bytes)
            pause_s = self._owed_s(len(chunk))
            if writer.position == size_bytes or not self._patience.is_open():
                return
            rate = pulse.beat(len(chunk), now_s=self._patience.now_s())
            if rate is not None and not may_be_slow:
                raise TooSlow(f"it sends {rate:.0f} bytes a second")
            self._patience.pause(pause_s)
            pulse.paused(pause_s)

    def _owed_s(self, size_bytes: int) -> float:
        if self._bucket is None:
            return 0.0
        return self._bucket.take(size_bytes, now_s=self._patience.now_s())
