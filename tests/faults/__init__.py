"""Faults of a link, made to order: a TCP proxy that delays, stalls, cuts, swallows and limits.

with LinkProxy(("127.0.0.1", 1883)) as proxy:
    proxy.set(Conditions(latency_s=0.1, bytes_s=125_000))
    proxy.cut_at([100_000, 200_000])
"""

from tests.faults.conditions import GOOD, Conditions, How
from tests.faults.proxy import Counts, LinkProxy

__all__ = ["GOOD", "Conditions", "Counts", "How", "LinkProxy"]
