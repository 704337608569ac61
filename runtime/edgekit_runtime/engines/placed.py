"""Placed: what an engine itself says of where a model's work runs.

A share is of MACs where they can be told, of nodes where not, and names its unit. Nodes are counted
as the engine has them: one that was fused of many, or that holds a compiled graph, is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from edgekit.structs import Strict

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

_ENTIRELY = "the engine runs nothing elsewhere"
_UNASKED = "no accelerator was asked for"


class Node(Strict, frozen=True, kw_only=True):
    """One node of a graph as an engine has it.

    Attributes:
        accelerated: it is on what was asked for, not on the CPU.
        macs: multiply-accumulates; 0 where it multiplies nothing worth counting, None where they
            cannot be told.
    """

    operator: str
    accelerated: bool
    macs: int | None


class Placed(Strict, frozen=True, kw_only=True):
    """Where a model runs.

    Attributes:
        share: of the work on the accelerator, in `unit`.
        unit: `macs`, or `nodes` where MACs on the CPU cannot be told.
        fallback_ops: operator types that run on the CPU beside it, sorted.
        source: what the engine was asked.
    """

    share: Share
    unit: Literal["macs", "nodes"]
    fallback_ops: tuple[str, ...] = ()
    source: str

    def __str__(self) -> str:
        left = f", {', '.join(self.fallback_ops)} on the CPU" if self.fallback_ops else ""
        return f"{self.share:.3g} of {self.unit} on the accelerator{left} ({self.source})"


def on_accelerator(source: str = _ENTIRELY) -> Placed:
    """Everything is on the accelerator."""
    return Placed(share=1.0, unit="macs", source=source)


def on_cpu(source: str = _UNASKED) -> Placed:
    """Everything is on the CPU."""
    return Placed(share=0.0, unit="macs", source=source)


def of_nodes(nodes: Sequence[Node], *, source: str) -> Placed:
    """The share of a graph on the accelerator.

    Where no node that multiplies is on the CPU the share of MACs is 1 and where none is on the
    accelerator it is 0, however many they are; else MACs must be known of every node.
    """
    left = [node for node in nodes if not node.accelerated]
    operators = tuple(sorted({node.operator for node in left}))

    def placed(share: float, unit: Literal["macs", "nodes"] = "macs") -> Placed:
        return Placed(share=share, unit=unit, fallback_ops=operators, source=source)

    if len(left) == len(nodes):
        return placed(0.0)
    on_cpu, total = _sum(left), _sum(nodes)
    if on_cpu == 0:
        return placed(1.0)
    if on_cpu is None or total is None:
        return placed((len(nodes) - len(left)) / len(nodes), "nodes")
    return placed((total - on_cpu) / total)


def _sum(nodes: Sequence[Node]) -> int | None:
    total = 0
    for node in nodes:
        if node.macs is None:
            return None
        total += node.macs
    return total
