"""Placement: the share of a model's work that must run on a board's accelerator, and what does."""

from __future__ import annotations

from math import floor

from edgekit.profile import DeviceProfile, EngineSpec, Placement
from edgekit_converters.targets import Coverage, Finding, Found

_NAMED = 4


def floor_of(profile: DeviceProfile, engine: EngineSpec) -> Placement:
    """What the profile asks of artefacts for one of its engines; nothing of those on the CPU."""
    return Placement() if engine.accelerator == "cpu" else profile.placement


def problems(found: Found | None, asked: Placement, engine: EngineSpec) -> tuple[str, ...]:
    """Why a board would refuse to load an artefact; empty where nothing is known to speak against.

    Args:
        found: where the artefact runs; None where nobody looked.
        asked: the floor.
    """
    if engine.accelerator == "cpu" or found is None or found.accelerator_macs is None:
        return ()
    if found.accelerator_macs >= asked.min_accelerator_macs:
        return ()
    operators = ", ".join(found.fallback_ops or ()) or "operators that are not known"
    return (
        f"{_share(found.accelerator_macs)} of the MACs run on the {engine.accelerator}, the profile"
        f" asks for {asked.min_accelerator_macs:.2f}: on the CPU are {operators}",
    )


def coverage_problems(found: Coverage, asked: Placement, engine: EngineSpec) -> tuple[str, ...]:
    """Why nothing can be made for an engine, or nothing that the profile would take.

    Each names operators and what to do about them.
    """
    if found.refused:
        return tuple(map(_told, found.refused[:_NAMED])) + _more(found.refused)
    below = found.accelerator_macs is not None and (
        found.accelerator_macs < asked.min_accelerator_macs
    )
    if engine.accelerator == "cpu" or not below:
        return ()
    assert found.accelerator_macs is not None
    share = (
        f"{_share(found.accelerator_macs)} of the MACs would run on the {engine.accelerator}, the"
        f" profile asks for {asked.min_accelerator_macs:.2f}"
    )
    return (share, *map(_told, found.fallback[:_NAMED]), *_more(found.fallback))


def beside(found: Coverage) -> tuple[str, ...]:
    """What would run on the CPU beside the accelerator: operators by name, and why."""
    return tuple(map(_told, found.fallback[:_NAMED])) + _more(found.fallback)


def linted(found: Coverage) -> Found:
    """Where an artefact would run by its lint alone."""
    return Found(
        accelerator_macs=found.accelerator_macs,
        fallback_ops=tuple(sorted({finding.operator for finding in found.fallback})),
        evidence="linted",
    )


def contract(found: Found | None, asked: Placement) -> Placement:
    """What the manifest promises: the profile's floor, and which operators are on the CPU."""
    operators = {*asked.fallback_ops, *(found.fallback_ops or () if found else ())}
    return Placement(
        min_accelerator_macs=asked.min_accelerator_macs, fallback_ops=tuple(sorted(operators))
    )


def _told(finding: Finding) -> str:
    what = f"{finding.operator} {finding.node!r}" if finding.operator else repr(finding.node)
    return f"{what}: {finding.reason}" + (f" ({finding.instead})" if finding.instead else "")


def _more(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    rest = len(findings) - _NAMED
    return (f"and {rest} more",) if rest > 0 else ()


def _share(value: float) -> str:
    """Two digits, rounded down: what is not all is never shown as 1.00."""
    return f"{floor(value * 100) / 100:.2f}"
