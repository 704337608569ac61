"""Linkage: whether this device hears its fleet, and if not, why; as codes, on disk and as events.

The broker is the one that nobody can be told about over the broker. So the reason lies in
`STATE/link.json` for `edgekit device status`, and in the outbox for later.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec

from edgekit import storage
from edgekit.clock import Clock
from edgekit.errors import StorageError
from edgekit.messages import Count, Text
from edgekit.structs import Strict
from edgekit_runtime.outbox.allowance import Allowance
from edgekit_runtime.telemetry import Events

log = logging.getLogger(__name__)

FILE = "link.json"
_LOOK_S = 1.0
# A broker that takes and refuses a device in turns must not write its flash full.
_BURST, _EVERY_S = 20, 600.0


class Trouble(Enum):
    """Why there is no link; `device.md` says each in a line."""

    CERTIFICATE_EXPIRED = "certificate_expired"
    CLOCK_WRONG = "clock_wrong"
    CERTIFICATE_REFUSED = "certificate_refused"
    BROKER_UNTRUSTED = "broker_untrusted"
    BROKER_REFUSED = "broker_refused"
    BROKER_UNREACHABLE = "broker_unreachable"


# The first text that a reason contains gives its code; TLS libraries and brokers put it in words.
_WORDS: tuple[tuple[str, Trouble], ...] = (
    ("alert certificate expired", Trouble.CERTIFICATE_EXPIRED),
    ("not yet valid", Trouble.CLOCK_WRONG),
    ("certificate has expired", Trouble.CLOCK_WRONG),
    ("certificate verify failed", Trouble.BROKER_UNTRUSTED),
    ("alert", Trouble.CERTIFICATE_REFUSED),
    ("the broker says", Trouble.BROKER_REFUSED),
    ("not authori", Trouble.BROKER_REFUSED),
)


def trouble_of(reason: str) -> Trouble:
    """The code of a reason that the link gives in words."""
    lowered = reason.lower()
    for words, code in _WORDS:
        if words in lowered:
            return code
    return Trouble.BROKER_UNREACHABLE


class LinkStatus(Strict, frozen=True, kw_only=True):
    """What is known of the link.

    Attributes:
        up: whether it is.
        reason: a `Trouble` where it is not, and that is known.
        detail: the same in the words of the network.
        since_ms: when it became so, milliseconds since 1970 by the device's clock.
    """

    up: bool
    reason: Trouble | None = None
    detail: Text = ""
    since_ms: Count


class Watched(Protocol):
    """A link as it can be asked: `edgekit.link.MqttLink`."""

    @property
    def connected(self) -> bool: ...

    @property
    def refused(self) -> str | None: ...


class Linkage:
    """Looks at a link now and then and tells what changed.

    Args:
        state: the state folder.
        link: what is looked at.
        events: where a trouble is told, for when there is a link again.
        clock: dates it.
    """

    def __init__(self, state: Path, link: Watched, *, events: Events, clock: Clock) -> None:
        self._path = state / FILE
        self._link = link
        self._events = events
        self._clock = clock
        self._known: tuple[bool, Trouble | None] | None = None
        self._allowance = Allowance(burst=_BURST, every_s=_EVERY_S, now_s=clock.monotonic())

    async def watch(self) -> None:
        """Look, until cancelled."""
        while True:
            # It writes: a disk that is slow must not hold requests up.
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """Take notice of a change: a write of one small file, at most one for each change.

        Of changes that come and go for hours only some are noticed.
        """
        up, refused = self._link.connected, self._link.refused
        if not up and refused is None:
            # It connects for the first time, or has just been lost: nothing is known yet.
            return
        trouble = None if up else trouble_of(refused or "")
        if (up, trouble) == self._known or not self._allowance.take(self._clock.monotonic()):
            return
        self._known = up, trouble
        status = LinkStatus(
            up=up, reason=trouble, detail=(refused or "")[:2000], since_ms=self._clock.now_ms()
        )
        try:
            storage.write(self._path, msgspec.json.encode(status))
        except StorageError as e:
            log.warning("state of the link is not on disk", extra={"error": str(e)})
        if trouble is not None:
            self._events("link_refused", refused or "", level="warning", reason=trouble.value)


def read(state: Path) -> LinkStatus | None:
    """What the daemon last knew of its link; `None` where it has none, or knew nothing."""
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=LinkStatus)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
