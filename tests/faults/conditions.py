"""Conditions: what a link is like at one moment."""

from __future__ import annotations

from typing import Literal

import msgspec

How = Literal["rst", "fin"]


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What a link does to the bytes on it, in both directions alike.

    Attributes:
        latency_s: added to each byte on its way; throughput is not touched.
        bytes_s: rate of a direction, shared by all its connections; `None` is no limit.
        stalled: bytes wait on the link until it moves again; none is lost.
        half_open: bytes are swallowed and nothing is ever answered or closed. A connection that
            lost bytes stays so when the link is good again, since a stream with a gap cannot go on.
        refuses: new connections are reset.
    """

    latency_s: float = 0.0
    bytes_s: float | None = None
    stalled: bool = False
    half_open: bool = False
    refuses: bool = False


GOOD = Conditions()
