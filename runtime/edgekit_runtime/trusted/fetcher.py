"""Fetcher: metadata over HTTP for TUF's library, from one repository, one connection at a time.

Redirects are refused: a repository must not send a device to other machines of its network. Sizes
are bounded by who asks, silence by a timeout here, and the whole by `__main__`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

IDLE_TIMEOUT_S = 20.0
CHUNK_BYTES = 1 << 16


class Fetcher(FetcherInterface):
    """Fetches from the host of `base`.

    Args:
        base: http or https address of the repository.
        ca: certificates to trust beside the system's.

    Attributes:
        date: the time that the server said last; a hint, nothing proves it.
    """

    def __init__(self, base: str, *, ca: Path | None) -> None:
        parts = urlsplit(base)
        host, timeout_s = parts.hostname or "", IDLE_TIMEOUT_S
        if parts.scheme == "https":
            context = ssl.create_default_context()
            if ca is not None:
                context.load_verify_locations(cafile=ca)
            self._connection: HTTPConnection = HTTPSConnection(
                host, parts.port, timeout=timeout_s, context=context
            )
        else:
            self._connection = HTTPConnection(host, parts.port, timeout=timeout_s)
        self.date: datetime | None = None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _fetch(self, url: str) -> Iterator[bytes]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgekitd"}
        try:
            self._connection.request("GET", urlsplit(url).path, headers=headers)
            response = self._connection.getresponse()
        except (OSError, HTTPException) as e:
            self._connection.close()
            raise DownloadError(f"{url}: {str(e) or type(e).__name__}") from e
        self.date = _date(response.getheader("Date", "")) or self.date
        if response.status != 200:
            # What an error page says is not read; the next request takes a new connection.
            self._connection.close()
            raise DownloadHTTPError(f"{url}: answered {response.status}", response.status)
        return self._chunks(url, response)

    def _chunks(self, url: str, response: HTTPResponse) -> Iterator[bytes]:
        is_whole = False
        try:
            while chunk := response.read1(CHUNK_BYTES):
                yield chunk
            # `read1` ends without a word where the other side hung up.
            if response.length:
                raise DownloadError(f"{url}: the connection ended {response.length} bytes early")
            # Only then does the connection take another request.
            response.close()
            is_whole = True
        except (OSError, HTTPException) as e:
            raise DownloadError(f"{url}: {str(e) or type(e).__name__}") from e
        finally:
            if not is_whole:
                self._connection.close()


def _date(text: str) -> datetime | None:
    try:
        said = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return said if said.tzinfo else said.replace(tzinfo=timezone.utc)
