"""Address: where a file may be fetched, and nothing but `http` and `https`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from edgekit_runtime.update import Reason, UpdateFailed

_PLAIN = re.compile(r"[!-~]+\Z")


class Place(NamedTuple):
    """Where a file can be asked for.

    Attributes:
        url: its address.
        base: whose it is: the same for a bundle and the deltas to it that lie at one repository.
    """

    url: SplitResult
    base: str


def resolve(repository: str, url: str) -> SplitResult:
    """The address of a file; only `http` and `https`, without user and password.

    Raises:
        UpdateFailed: `bad_url`.
    """
    try:
        parts = urlsplit(urljoin(repository, url))
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as e:
        raise UpdateFailed(Reason.BAD_URL, f"{url!r} is not an address: {e}") from e
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise UpdateFailed(Reason.BAD_URL, f"{url!r} is not a plain http or https address")
    if not (_PLAIN.match(parts.geturl()) and port_is_valid):
        raise UpdateFailed(Reason.BAD_URL, f"{url!r} has characters or a port that none may have")
    return parts


def every(repositories: Iterable[str], url: str) -> tuple[Place, ...]:
    """The places of a file at each repository, in order; the same one only once."""
    found = dict.fromkeys(resolve(repository, url) for repository in repositories)
    return tuple(Place(each, each.geturl()) for each in found)


def beside(urls: Iterable[str], others: Iterable[str]) -> tuple[Place, ...]:
    """The places of another file at the same repositories: `others` beside `urls`, in order."""
    pairs = zip(urls, others, strict=True)
    bases = {resolve(other, ""): resolve(url, "").geturl() for url, other in pairs}
    return tuple(Place(url, base) for url, base in bases.items())


def origin(url: SplitResult) -> str:
    """Which server an address is at."""
    return f"{url.scheme}://{url.netloc}"


def target(url: SplitResult) -> str:
    """What is asked of that server."""
    return (url.path or "/") + (f"?{url.query}" if url.query else "")
