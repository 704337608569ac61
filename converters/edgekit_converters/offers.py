"""Offers: what a recipe lets the search compose for one model and one engine.

Without `passes` in the recipe every pass is asked what it offers. Passes that a recipe names and
that do not change the precision begin every scheme, in its order; those that do are alternatives,
and what it leaves open of them is searched. What cannot be run here is refused with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import onnx

from edgekit.profile import EngineSpec
from edgekit.recipe import PassSpec
from edgekit_converters.blocks import blocks_of
from edgekit_converters.cache import key_of
from edgekit_converters.passes import PASSES, Kind, Step
from edgekit_converters.prospects import LEAST_GROUPS
from edgekit_converters.report import Rejected
from edgekit_converters.search import Space
from edgekit_converters.source import TfliteSource
from edgekit_converters.targets import TARGETS, Target
from edgekit_converters.workshop import Workshop

# Options that change the answers of a step and hardly its speed.
_RANGES = frozenset({"algorithm", "calibrator", "percentile", "per_channel"})


def space_of(
    workshop: Workshop, engine: EngineSpec, *, target: Target, timed: bool
) -> tuple[Space, tuple[Rejected, ...]]:
    """What may be composed, and which passes of the recipe cannot be run.

    Args:
        target: makes the artefacts; where it offers steps of its own, they take the place of the
            passes that change the precision.
        timed: artefacts run on the machine they are for. Elsewhere nobody could say what a
            rewrite gains, and only the recipe can ask for one.

    Raises:
        RecipeError: an option of a pass is unknown or out of range.
    """
    asked = workshop.recipe.passes
    if isinstance(workshop.source, TfliteSource):
        reason = "a .tflite source is packaged as it is"
        return Space(), tuple(_refused(spec.name, reason, engine) for spec in asked or ())
    model = workshop.normal(engine).model
    has_samples = workshop.parts.calibration is not None
    refused: list[Rejected] = []
    prefix: list[Step] = []
    found: dict[Kind, list[tuple[Step, ...]]] = {kind: [] for kind in get_args(Kind)}
    own, not_own = _own_families(asked, target, model=model, engine=engine)
    found["precision"] += own
    refused += not_own
    for spec in _every_pass() if asked is None else [s for s in asked if s.name in PASSES]:
        tool = PASSES.get(spec.name)
        if own and tool.kind == "precision":
            continue
        offers = tool.offers(spec.options, model=model, engine=engine, style=target.style)
        if not offers and asked is not None:
            reason = f"nothing to do on this model, or not for {engine.name} here"
            refused.append(_refused(spec.name, reason, engine))
        elif offers and tool.needs_samples and not has_samples:
            refused.append(_refused(spec.name, "no calibration samples: give --data", engine))
        elif offers and tool.kind == "precision":
            found[tool.kind] += families(offers)
        elif offers and asked is not None:
            prefix.append(offers[0])
        elif (
            offers
            and has_samples
            and (
                tool.kind == "preparation"
                or (timed and _may_lose(workshop, needs=tool.needs_samples))
            )
        ):
            found[tool.kind].append(offers)
    space = Space(
        prefix=tuple(prefix),
        families=tuple(found["precision"]),
        preparations=tuple(found["preparation"]),
        rewrites=tuple(found["rewrite"]),
        blocks=blocks_of(model),
    )
    return space, tuple(refused)


def _own_families(
    asked: Sequence[PassSpec] | None, target: Target, *, model: onnx.ModelProto, engine: EngineSpec
) -> tuple[list[tuple[Step, ...]], list[Rejected]]:
    """What the target's own tools offer, and what a recipe asks of other targets or of nobody."""
    if asked is None:
        return families(target.offers({}, model=model, engine=engine)), []
    found: list[tuple[Step, ...]] = []
    refused: list[Rejected] = []
    for spec in asked:
        if spec.name in PASSES:
            continue
        # An unknown name is told as that of a pass: what targets offer is seldom asked for by name.
        if spec.name not in TARGETS:
            PASSES.get(spec.name)
        is_own = TARGETS.get(spec.name) is target
        offers = target.offers(spec.options, model=model, engine=engine) if is_own else ()
        found += families(offers)
        if not offers:
            refused.append(_refused(spec.name, f"nothing to do for {engine.name} here", engine))
    return found, refused


def families(offers: Sequence[Step]) -> list[tuple[Step, ...]]:
    """Offers that differ only in how ranges are chosen are as fast as each other: one family."""
    found: dict[str, list[Step]] = {}
    for step in offers:
        speed = {name: value for name, value in step.options.items() if name not in _RANGES}
        found.setdefault(key_of(speed), []).append(step)
    return [tuple(family) for family in found.values()]


def _may_lose(workshop: Workshop, *, needs: bool) -> bool:
    """Whether a rewrite that was fitted to samples may be tried without being asked for.

    What was fitted to few sources is right on sources like them. On few groups nothing shows that:
    on EfficientNet-Lite0, pruning that kept .987 of the answers on five photographs kept .923 on
    ten others.
    """
    selection = workshop.parts.selection
    groups = 0 if selection is None else len(set(selection.groups.tolist()))
    return not needs or groups >= LEAST_GROUPS


def _every_pass() -> tuple[PassSpec, ...]:
    return tuple(PassSpec(name=name) for name in PASSES.names())


def _refused(name: str, reason: str, engine: EngineSpec) -> Rejected:
    return Rejected(scheme=name, reason=reason, engine=engine.name)
