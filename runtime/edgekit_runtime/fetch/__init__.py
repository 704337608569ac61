"""Fetch: one bundle over HTTP, by a delta where one fits, resumed where it broke off.

Promise: what `Fetcher.fetch` returns has the announced size and sha256. Servers and links that
stall, drip, lie about lengths or send garbage cost time, bounded by limits, bytes, bounded for each
bundle, and never more disk than was announced. What is on the disk survives the daemon; a power cut
costs at most `part.SYNC_BYTES` of it. Who asks it to end waits a second, not for a server.

Map, top down: `fetcher` (delta or whole, room) · `shortcut` (a delta applied) · `download` (one
file, every mirror) · `mirrors` (which one next) · `attempt` (one request) · `connection`, `watch`,
`answer` (HTTP) · `part`, `allowance` (the disk) · `address`, `hours`, `pace`, `patience`, `retry`,
`room`, `window` (rules).
"""

from __future__ import annotations

from edgekit_runtime.fetch.address import resolve
from edgekit_runtime.fetch.attempt import Progress
from edgekit_runtime.fetch.download import OnHold
from edgekit_runtime.fetch.fetcher import Fetcher, Tell, check
from edgekit_runtime.fetch.hours import Hours, Wait
from edgekit_runtime.fetch.patience import Interrupted
from edgekit_runtime.fetch.retry import backoff

__all__ = [
    "Fetcher",
    "Hours",
    "Interrupted",
    "OnHold",
    "Progress",
    "Tell",
    "Wait",
    "backoff",
    "check",
    "resolve",
]
