"""Budget: which models hold memory, and which give it back when another needs room. Pure rules.

What nobody asked for gives way first: variants beside the default one, then whole models, each the
longest unused first. What works on requests now is never taken away.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit.errors import Overloaded

K = TypeVar("K", bound=Hashable)
RETRY_S = 5.0


@dataclass(frozen=True)
class Holding(Generic[K]):
    """Memory that one open variant holds.

    Attributes:
        size_bytes: what it holds.
        used_at: when it was used last, by any clock.
        is_default: whether its model cannot answer without it.
        is_busy: whether it works on requests now, or requests wait for it.
    """

    key: K
    size_bytes: int
    used_at: float
    is_default: bool
    is_busy: bool


def make_room(
    holdings: Sequence[Holding[K]], *, needed_bytes: int, budget_bytes: int, what: str
) -> list[K]:
    """What must be closed so that `needed_bytes` more fit into the budget, in order.

    Raises:
        Overloaded: it does not fit, whatever is closed; nothing should be.
    """
    if budget_bytes == 0:
        return []
    over = sum(holding.size_bytes for holding in holdings) + needed_bytes - budget_bytes
    closing: list[K] = []
    for holding in sorted(holdings, key=lambda h: (h.is_default, h.used_at)):
        if over <= 0:
            break
        if holding.is_busy:
            continue
        closing.append(holding.key)
        over -= holding.size_bytes
    if over > 0:
        raise Overloaded(
            f"{what} needs {needed_bytes >> 20} MB, {over >> 20} MB more than the memory budget of"
            f" {budget_bytes >> 20} MB has room for",
            retry_after_s=RETRY_S,
            hint="unload a model, or raise memory_mb",
        )
    return closing
