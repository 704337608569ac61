"""Placement: the engine runs a variant where its manifest says, or the variant is not served.

The build found what share of the MACs is on the accelerator and which operators are beside it on
the CPU; a board, a driver or a library of another version may do otherwise without a word. So each
load asks the engine, and the manifest says what comes of a difference: it is refused, or served
with an alarm.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor

from edgekit.errors import PlacementBroken
from edgekit.manifest import Variant
from edgekit.profile import Placement
from edgekit_runtime.engines import Session
from edgekit_runtime.engines.placed import Placed

# Shares are sums of whole numbers, divided; contracts are rounded down to two digits.
_ROUNDING = 1e-9


def verify(variant: Variant, session: Session, *, alarm: Callable[[str], None]) -> Placed | None:
    """Where a session runs its model, held against the variant's contract.

    Args:
        alarm: is told what is wrong where the manifest says `alarm`, and that nobody can tell where
            the engine does not.

    Returns:
        What the engine reports; None for a variant of the CPU, which has no contract to break, and
        where the engine reports nothing.

    Raises:
        PlacementBroken: the contract is broken, and the manifest says to refuse.
    """
    if variant.accelerator == "cpu":
        return None
    found, contract = session.placement, variant.placement
    if found is None:
        if contract.min_accelerator_macs > 0:
            alarm(
                f"variant {variant.name}: engine {variant.engine} does not say what runs on the"
                f" {variant.accelerator}, the manifest asks for"
                f" {contract.min_accelerator_macs:.2f} of the MACs"
            )
        return None
    broken = problems(found, contract, accelerator=variant.accelerator)
    if not broken:
        return found
    text = f"variant {variant.name}: {'; '.join(broken)} ({found.source})"
    if contract.on_fallback == "alarm":
        alarm(text)
        return found
    raise PlacementBroken(
        text,
        hint="give the board the engine and driver of its profile, or build with these operators in"
        " placement.fallback_ops, or with placement.on_fallback: alarm",
    )


def problems(found: Placed, contract: Placement, *, accelerator: str) -> tuple[str, ...]:
    """What of a contract a placement breaks; empty where it is held.

    A share by nodes is not held against a floor of MACs: where MACs cannot be told, the operators
    that may be on the CPU are the contract.
    """
    told = []
    strange = [name for name in found.fallback_ops if name not in contract.fallback_ops]
    if strange:
        told.append(f"{', '.join(strange)} run on the CPU, and the manifest does not allow it")
    if found.unit == "macs" and found.share < contract.min_accelerator_macs - _ROUNDING:
        # Two digits, rounded down: what is not all is never shown as 1.00.
        share = floor(found.share * 100) / 100
        told.append(
            f"{share:.2f} of the MACs run on the {accelerator}, the manifest asks for"
            f" {contract.min_accelerator_macs:.2f}"
        )
    return tuple(told)
