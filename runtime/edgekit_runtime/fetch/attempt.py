"""Attempt: one request for what is missing of a file, and what came of it on the disk."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple
from urllib.parse import SplitResult

from edgekit_runtime.fetch import address, answer
from edgekit_runtime.fetch.allowance import Allowance
from edgekit_runtime.fetch.answer import Passing
from edgekit_runtime.fetch.connection import Connection
from edgekit_runtime.fetch.pace import Bucket, Pulse
from edgekit_runtime.fetch.part import Part, Writer
from edgekit_runtime.fetch.patience import Patience
from edgekit_runtime.fetch.watch import Watch
from edgekit_runtime.update import Reason, UpdateFailed

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
        allowance: what the servers may send.
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
        allowance: Allowance,
        bucket: Bucket | None,
        tls: ssl.SSLContext | None,
        patience: Patience,
        progress: Progress,
    ) -> None:
        self._part = part
        self._what = what
        self._link = link
        self._allowance = allowance
        self._bucket = bucket
        self._tls = tls
        self._patience = patience
        self._progress = progress

    def run(self, url: SplitResult, *, base: str, may_be_slow: bool) -> None:
        """Ask one server; returns when the file is whole, or the window closed.

        Args:
            url: where to ask.
            base: whose account it goes to.
            may_be_slow: whether a connection that drips is better than none.

        Raises:
            UpdateFailed: this server's answer will not pass, or the time is over.
            Passing, OSError, HTTPException: it may pass.
            Interrupted: somebody asked the download to end.
            StorageError: the disk takes no more.
        """
        asked = self._part.held_bytes()
        left = self._allowance.left_bytes(base)
        if left < self._part.size_bytes - asked:
            raise self._exhausted(url)
        spending = _Spending(self._allowance, base)
        watch = Watch(
            check=self._patience.check,
            head_limit_s=2 * self._link.idle_timeout_s,
            limit_bytes=left + self._allowance.beside_left_bytes(base),
        )
        try:
            with watch:
                self._fetch(url, asked, spending, watch, may_be_slow=may_be_slow)
        except (HTTPException, OSError, Passing, UpdateFailed):
            spending.end(watch.received_bytes)
            raise
        # Whoever ended it here leaves unread what the kernel took in ahead: not the server's doing.
        if self._part.held_bytes() == self._part.size_bytes:
            spending.end(watch.received_bytes)

    def _fetch(
        self,
        url: SplitResult,
        asked: int,
        spending: _Spending,
        watch: Watch,
        *,
        may_be_slow: bool,
    ) -> None:
        connection = Connection(
            url,
            timeout_s=self._link.idle_timeout_s,
            tls=self._tls,
            window_bytes=self._link.window_bytes,
            watch=watch,
        )
        # Both closed: a connection that ends with its answer has let go of it.
        with (
            closing(connection),
            connection.ask(url, self._headers(url, asked)) as response,
            self._writing(response, url, asked) as writer,
        ):
            if not self._copy(response, writer, spending, may_be_slow=may_be_slow):
                raise self._exhausted(url)

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

    def _copy(
        self, response: HTTPResponse, writer: Writer, spending: _Spending, *, may_be_slow: bool
    ) -> bool:
        """Take what comes; `False` where the server may send no more."""
        size_bytes = self._part.size_bytes
        pulse = Pulse(
            self._link.slowest_bytes_s,
            window_s=self._link.slow_window_s,
            now_s=self._patience.now_s(),
        )
        while writer.position < size_bytes:
            most = min(self._link.chunk_bytes, size_bytes - writer.position, spending.left_bytes())
            if not most:
                return False
            chunk = response.read1(most)
            if not chunk:
                raise Passing(f"the connection ended at {writer.position} of {size_bytes}")
            spending.take(len(chunk))
            writer.put(chunk)
            self._progress(writer.held_bytes / size_bytes)
            pause_s = self._owed_s(len(chunk))
            if writer.position == size_bytes or not self._patience.is_open():
                break
            rate = pulse.beat(len(chunk), now_s=self._patience.now_s())
            if rate is not None and not may_be_slow:
                raise TooSlow(f"it sends {rate:.0f} bytes a second")
            self._patience.pause(pause_s)
            pulse.paused(pause_s)
        return True

    def _owed_s(self, size_bytes: int) -> float:
        if self._bucket is None:
            return 0.0
        return self._bucket.take(size_bytes, now_s=self._patience.now_s())

    def _exhausted(self, url: SplitResult) -> UpdateFailed:
        return UpdateFailed(
            Reason.FETCH_EXHAUSTED,
            f"{self._what}: {address.origin(url)} sent all that it may for this bundle",
        )


class _Spending:
    """What one request takes from the account of its server."""

    def __init__(self, allowance: Allowance, base: str) -> None:
        self._allowance = allowance
        self._base = base
        self._body_bytes = 0

    def left_bytes(self) -> int:
        """What its body may still have."""
        return self._allowance.left_bytes(self._base)

    def take(self, size_bytes: int) -> None:
        """So much of its body came."""
        self._body_bytes += size_bytes
        self._allowance.spend(self._base, body_bytes=size_bytes)

    def end(self, received_bytes: int) -> None:
        """So much came in all, with what nobody read."""
        beside_bytes = max(0, received_bytes - self._body_bytes)
        self._allowance.spend(self._base, beside_bytes=beside_bytes)
