"""Verdicts: what an error of a repository means for an update, and what several of them mean.

Rules over values; `__main__` asks them.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)

from edgekit_runtime.trusted.client import NotThere, RootDamaged
from edgekit_runtime.trusted.target import Failed, Passing

UNTRUSTED = "repository_untrusted"
STALE = "repository_stale"
REFUSED = "repository_refused"
NOT_THERE = "not_in_repository"
CLOCK_WRONG = "clock_wrong"

# Answers that a server may give now and not later.
_PASSING_STATUS = frozenset({408, 425, 429})
# OpenSSL: a certificate is not valid yet, or not any more.
_VALIDITY = frozenset({9, 10})
# Clocks that differ less are no explanation for anything.
_APART = timedelta(days=1)
_DETAIL_CHARS = 500

Foreseen = (RepositoryError, DownloadError, NotThere, RootDamaged)


def of(
    error: RepositoryError | DownloadError | NotThere | RootDamaged,
    *,
    url: str,
    wall: datetime,
    reference: datetime,
    server: datetime | None,
) -> Failed | Passing:
    """What an error means.

    Args:
        url: the repository it came from.
        wall: what this board's clock says.
        reference: the time by which expiry was judged; `wall` or later.
        server: what the repository's server says the time is; nothing proves it.
    """
    said = f"{url}: {str(error) or type(error).__name__}"[:_DETAIL_CHARS]
    if isinstance(error, DownloadError):
        return _download(error, said, wall=wall, reference=reference)
    if isinstance(error, NotThere):
        return Failed(reason=NOT_THERE, detail=said)
    if isinstance(error, RootDamaged):
        return Failed(reason=UNTRUSTED, detail=f"{error}: enrol this device again")
    if isinstance(error, ExpiredMetadataError):
        if server is not None and wall - server > _APART:
            clocks = f"this board's clock says {_day(wall)}, its server's {_day(server)}"
            return Failed(reason=CLOCK_WRONG, detail=f"{said}; {clocks}")
        return Failed(reason=STALE, detail=f"{said}; judged on {_day(reference)}")
    if isinstance(error, BadVersionNumberError):
        return Failed(reason=STALE, detail=said)
    return Failed(reason=UNTRUSTED, detail=said)


def _download(
    error: DownloadError, said: str, *, wall: datetime, reference: datetime
) -> Failed | Passing:
    cause = error.__cause__
    if isinstance(error, DownloadHTTPError):
        status = error.status_code
        if status in _PASSING_STATUS or status >= 500:
            return Passing(detail=said)
        return Failed(reason=REFUSED, detail=said)
    if isinstance(error, DownloadLengthMismatchError):
        return Failed(reason=REFUSED, detail=said)
    is_dated = isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _VALIDITY
    if is_dated and reference - wall > _APART:
        clocks = f"this board's clock says {_day(wall)}, it is {_day(reference)} or later"
        return Failed(reason=CLOCK_WRONG, detail=f"{said}; {clocks}")
    return Passing(detail=said)


def together(verdicts: Sequence[Failed | Passing]) -> Failed | Passing:
    """What the verdicts over all repositories mean: while one may still give it, it may pass."""
    details = "; ".join(verdict.detail for verdict in verdicts)
    passing = [verdict for verdict in verdicts if isinstance(verdict, Passing)]
    if passing or not verdicts:
        return Passing(detail=details)
    first = verdicts[0]
    assert isinstance(first, Failed)
    return Failed(reason=first.reason, detail=details)


def _day(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M")
