"""Placement: the share of a model's work that must run on a board's accelerator, and what does."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import msgspec

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
        return _told(found.refused)
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
    return (share, *_told(found.fallback))


def beside(found: Coverage) -> tuple[str, ...]:
    """What would run on the CPU beside the accelerator: operators by name, and why."""
    return _told(found.fallback)


def linted(found: Coverage) -> Found:
    """Where an artefact would run by its lint alone."""
    return Found(
        accelerator_macs=found.accelerator_macs,
        fallback_ops=tuple(sorted({finding.operator for finding in found.fallback})),
        evidence="linted",
    )


def contract(found: Found | None, asked: Placement) -> Placement:
    """What the manifest holds a board to: the share that was found, and what is on the CPU.

    A lint may be wrong in either direction, so what is only linted promises the profile's floor.
    """
    operators = {*asked.fallback_ops, *(found.fallback_ops or () if found else ())}
    least = asked.min_accelerator_macs
    if found is not None and found.accelerator_macs is not None and found.evidence != "linted":
        least = max(least, floor(found.accelerator_macs * 100) / 100)
    return msgspec.structs.replace(
        asked, min_accelerator_macs=least, fallback_ops=tuple(sorted(operators))
    )


def unknown(found: Found | None, asked: Placement, engine: EngineSpec) -> tuple[str, ...]:
    """That nobody can say whether a floor is held; empty where somebody can, or none is asked."""
    if engine.accelerator == "cpu" or asked.min_accelerator_macs == 0:
        return ()
    if found is not None and found.accelerator_macs is not None:
        return ()
    return (
        f"what share of the MACs runs on the {engine.accelerator} is not known here; the profile"
        f" asks for {asked.min_accelerator_macs:.2f}",
    )


def _told(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The first few, those of one operator and reason together, and how many more there are."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        # Of a tensor the name is all there is.
        what = finding.operator or finding.node
        alike.setdefault((what, finding.reason, finding.instead), []).append(finding)
    groups = list(alike.values())
    rest = sum(map(len, groups[_NAMED:]))
    return (*map(_in_words, groups[:_NAMED]), *((f"and {rest} more",) if rest else ()))


def _in_words(alike: Sequence[Finding]) -> str:
    first = alike[0]
    what = f"{first.operator} {first.node!r}" if first.operator else repr(first.node)
    if len(alike) > 1:
        what += f" and {len(alike) - 1} more of them"
    return f"{what}: {first.reason}" + (f" ({first.instead})" if first.instead else "")


def _share(value: float) -> str:
    """Two digits, rounded down: what is not all is never shown as 1.00."""
    return f"{floor(value * 100) / 100:.2f}"
