"""Identity: who a device is to its fleet, how it came to be that, and how it stays it.

Map: `identity` (what is on disk, read), `files` (how it gets there whole or not at all), `enrol`
(a token for a certificate), `validity` (rules of time), `renewal` (a new one before the old ends),
`office` (the coordinator, asked over HTTP).
"""

from __future__ import annotations

from edgekit_runtime.identity.identity import Identity
from edgekit_runtime.identity.renewal import Renewal

__all__ = ["Identity", "Renewal"]
