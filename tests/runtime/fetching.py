"""What tests of downloads share: what is announced, and a fetcher with no time to lose."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from edgekit.clock import Clock, SystemClock
from edgekit.messages import Wanted
from edgekit_runtime.fetch import Fetcher, Wait
from edgekit_runtime.fetch.part import MARK_SUFFIX, Mark, boot_id
from edgekit_runtime.update import Reason, UpdateFailed
from tests.runtime.authority import Authority
from tests.runtime.file_server import DATA


def wanted(data: bytes = DATA, *, url: str = "it.edge") -> Wanted:
    return Wanted(
        version="1.0.0",
        digest="sha256:" + "0" * 64,
        url=url,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
    )


def make(
    folder: Path,
    repository: str,
    *mirrors: str,
    reserve_bytes: int = 1,
    clock: Clock | None = None,
    idle_timeout_s: float = 5.0,
    **options: Any,
) -> Fetcher:
    return Fetcher(
        folder / "fetch",
        repository=repository,
        mirrors=mirrors,
        reserve_bytes=reserve_bytes,
        clock=clock or SystemClock(),
        rng=Random(1),
        idle_timeout_s=idle_timeout_s,
        **options,
    )


def get(
    fetcher: Fetcher,
    what: Wanted | None = None,
    *,
    limit_s: float = 20.0,
    progress: Callable[[float], None] = lambda _: None,
    wait: Wait = lambda _: False,
    **options: Any,
) -> bytes:
    """The file, by a device that sleeps through no wait."""
    path = fetcher.fetch(what or wanted(), limit_s=limit_s, progress=progress, wait=wait, **options)
    return path.read_bytes()


def refused(
    fetcher: Fetcher, what: Wanted | None = None, *, match: str | None = None, **options: Any
) -> Reason:
    """The reason why there is no file."""
    with pytest.raises(UpdateFailed, match=match) as caught:
        get(fetcher, what, **options)
    return caught.value.reason


def hold(fetcher: Fetcher, data: bytes, what: Wanted | None = None) -> None:
    """Let a download break off when so much is here."""
    part = fetcher.part(what or wanted())
    part.write_bytes(data)
    mark = Mark(boot=boot_id(), durable_bytes=len(data))
    part.with_name(part.name + MARK_SUFFIX).write_bytes(msgspec.json.encode(mark))


def tls_of(authority: Authority) -> ssl.SSLContext:
    """What a server shows that this authority knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    return context
