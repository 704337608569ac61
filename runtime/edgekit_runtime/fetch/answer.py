"""Answer: what the head of an HTTP answer means for a download; pure.

Ranges and their validators are those of RFC 9110, sections 13 and 14.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from edgekit.errors import LinkError
from edgekit_runtime.update import Reason, UpdateFailed

# Answers that a server may give now and not later.
_PASSING = frozenset({408, 421, 425, 429})
_RANGE = re.compile(r"bytes +(?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19}|\*)\Z", re.IGNORECASE)
_STRONG_ETAG = re.compile(r'"[!#-~]{1,200}"\Z')

Header = Callable[[str], str]


class Passing(LinkError):
    """What went wrong may pass.

    Args:
        retry_after: the server's wish in `Retry-After`, as it came.
    """

    def __init__(self, message: str, *, retry_after: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Range(NamedTuple):
    """A `Content-Range`; `first` and `last` are `None` in an answer 416."""

    first: int | None
    last: int | None
    total: int | None


def content_range(text: str) -> Range | None:
    """Read a `Content-Range` in bytes; `None` for one that contradicts itself or is none."""
    found = _RANGE.match(text.strip())
    if found is None:
        return None
    total = None if found[3] == "*" else int(found[3])
    if found[1] is None:
        return None if total is None else Range(None, None, total)
    first, last = int(found[1]), int(found[2])
    if first > last or (total is not None and last >= total):
        return None
    return Range(first, last, total)


def begins_at(status: int, header: Header, *, asked: int, size_bytes: int, what: str) -> int:
    """Where in the file the body of an answer begins: at `asked`, or at 0.

    Args:
        status: of the answer.
        header: its value by name, "" where it is missing.
        asked: first byte that was asked for; 0 asked for no range.
        size_bytes: announced size of the file.
        what: names the file in messages.

    Raises:
        UpdateFailed: this server's answer will not pass.
        Passing: it may.
    """
    if status not in (200, 206):
        raise _refusal(status, header, size_bytes=size_bytes, what=what)
    for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        if header(name).strip().lower() not in ("", plain):
            raise UpdateFailed(
                Reason.FETCH_REFUSED, f"{what}: answered with {name} {header(name)!r}"
            )
    if status == 200:
        length = header("Content-Length").strip()
        if length.isdigit() and length.lstrip("0") != str(size_bytes):
            raise UpdateFailed(
                Reason.WRONG_SIZE, f"{what}: {length[:24]} bytes, {size_bytes} announced"
            )
        return 0
    found = content_range(header("Content-Range"))
    if found is None or found.first != asked:
        raise Passing(f"{what}: the answer is another range than was asked for")
    if found.total not in (None, size_bytes):
        raise UpdateFailed(
            Reason.WRONG_SIZE, f"{what}: {found.total} bytes, {size_bytes} announced"
        )
    return asked


def etag(header: Header) -> str:
    """The validator that `If-Range` may carry: a strong one, else ""."""
    text = header("ETag").strip()
    return text if _STRONG_ETAG.match(text) else ""


def _refusal(status: int, header: Header, *, size_bytes: int, what: str) -> UpdateFailed | Passing:
    if status == 416:
        found = content_range(header("Content-Range"))
        if found is not None and found.total == size_bytes:
            return Passing(f"{what}: a range of {size_bytes} bytes was refused")
        return UpdateFailed(Reason.WRONG_SIZE, f"{what}: the repository's file is shorter")
    if status in _PASSING or status >= 500:
        return Passing(
            f"{what}: the repository answers {status}", retry_after=header("Retry-After")
        )
    redirect = "; redirects are not followed" if 300 <= status < 400 else ""
    return UpdateFailed(Reason.FETCH_REFUSED, f"{what}: answered {status}{redirect}")
