"""Build: from a source to one signed, measured bundle for one board.

Read top down: for each engine of the profile what `bench` makes of the source, then the gate's
outcome, the report and the bundle. What may ship is decided by `gate` and `search`, how it is made
by `targets` and `passes`; this module only joins them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from edgekit.errors import BuildError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters import gate
from edgekit_converters.artefact import Made
from edgekit_converters.assemble import assemble
from edgekit_converters.bench import SOURCE, Bench, Line, Say
from edgekit_converters.gate import Gate, Verdict
from edgekit_converters.measure import Measurer
from edgekit_converters.report import BundleReport, Rejected
from edgekit_converters.search import KEEP
from edgekit_converters.summary import Findings, Order
from edgekit_converters.targets import target_for
from edgekit_converters.workshop import Workshop


def build(
    workshop: Workshop, profile: DeviceProfile, order: Order, *, measurer: Measurer, say: Say
) -> BundleReport:
    """Build for one profile and write the bundle and its report below `order.out`.

    Args:
        workshop: the source and its data, shared by all profiles of a command.
        order: what the bundle is called, who signs it and where it goes.
        measurer: takes the time of artefacts.
        say: is told each step.

    Returns:
        What was found. Where the gate refuses, `path` is None and nothing was written.

    Raises:
        BuildError: no engine of the profile takes the source.
        StorageError: the bundle could not be written; nothing of it is left.
    """
    started_s = time.monotonic()
    lines = [
        _line(workshop, profile, engine, measurer=measurer, say=say) for engine in profile.engines
    ]
    _require_any(workshop, profile, lines)
    outcome = _outcome(workshop, lines)
    findings = Findings(
        profile=profile,
        order=order,
        gate=outcome,
        variants={}
        if outcome.outcome == "refused"
        else variants(lines, most=workshop.recipe.search.variants),
        tried=tuple(tried for line in lines for tried in line.tried),
        rejected=tuple(rejected for line in lines for rejected in line.rejected),
        truncated=any(line.truncated for line in lines),
        notes=tuple(note for line in lines for note in line.notes),
        started_s=started_s,
    )
    say(f"{profile.name}: writing the bundle")
    return assemble(workshop, findings)


def variants(lines: Sequence[Line], *, most: int) -> dict[str, Made]:
    """What ships, by name, default first.

    Engines come in the order of the profile. Of each engine, what is proven stands before its
    float parent, fastest first, so that a list of variants reads as a ladder from the fastest to
    the most accurate; what the data could not prove stands behind it.

    Args:
        most: variants of one engine.
    """
    named: dict[str, Made] = {}
    for line in lines:
        proven = [made for made in line.rungs if not made.verdict.unproven]
        unproven = [made for made in line.rungs if made.verdict.unproven]
        parent = [made for made in (line.parent,) if made and not made.verdict.refused]
        for made in (*proven, *parent, *unproven)[:most]:
            named[_free_name(made, named)] = made
    return named


def _line(
    workshop: Workshop,
    profile: DeviceProfile,
    engine: EngineSpec,
    *,
    measurer: Measurer,
    say: Say,
) -> Line:
    target = target_for(engine)
    if target is not None and target.format == workshop.source.format:
        bench = Bench(workshop, profile, engine, target=target, measurer=measurer, say=say)
        return bench.line()
    if engine.accelerator == "cpu":
        return Line(None)
    takes = "nothing that edgekit makes" if target is None else f"a .{target.format} source"
    reason = f"{engine.name} on the {engine.accelerator} takes {takes}"
    return Line(None, rejected=(Rejected(scheme=SOURCE, reason=reason, engine=engine.name),))


def _require_any(workshop: Workshop, profile: DeviceProfile, lines: Sequence[Line]) -> None:
    if any(line.parent for line in lines):
        return
    engines = ", ".join(f"{engine.name} ({engine.accelerator})" for engine in profile.engines)
    reasons = "".join(f"; {rejected.reason}" for line in lines for rejected in line.rejected)
    raise BuildError(
        f"profile {profile.name} has {engines}: none takes a .{workshop.source.format}"
        f" source{reasons}",
        hint="choose another profile, or convert the model to the format of one of its engines",
    )


def _outcome(workshop: Workshop, lines: Sequence[Line]) -> Gate:
    floats: dict[str, Verdict] = {}
    best: dict[str, Verdict] = {}
    rest: dict[str, Verdict] = {}
    made_for = [(line, line.parent) for line in lines if line.parent is not None]
    for line, parent in made_for:
        engine = parent.engine
        # The same scheme for two engines has two verdicts.
        where = "" if len(made_for) == 1 else f" on the {engine.accelerator}"
        floats[f"float on {engine.name}{where}"] = parent.verdict
        best |= {f"{made.scheme.name}{where}": made.verdict for made in line.rungs}
        rest |= {
            f"{tried.scheme}{where}": Verdict(reasons=tried.reasons)
            for tried in line.tried
            if tried.reasons and not tried.probe
        }
        rest |= {
            f"{lost.scheme}{where}": Verdict(reasons=(lost.reason,))
            for lost in line.rejected
            if lost.scheme not in rest and lost.scheme != SOURCE
        }
    others = {**rest, **best}
    asked = workshop.recipe.passes != () and workshop.source.format == "onnx"
    if workshop.data is None and asked:
        unknown = ("accuracy is unknown without samples: give --data",)
        others.setdefault("everything but float", Verdict(unproven=unknown))
    return gate.conclude(floats=floats, others=others, asked=asked)


def _free_name(made: Made, taken: dict[str, Made]) -> str:
    """By kind; where another engine has that name, with what sets this one apart; else numbered."""
    kind = _kind(made)
    stems = (kind, f"{kind}-{made.engine.accelerator}", f"{kind}-{made.engine.name}")
    own = (stem for stem in stems if stem not in taken or taken[stem].engine == made.engine)
    stem = next(own, kind)
    names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _kind(made: Made) -> str:
    """What people call an artefact: by its precision, mixed where blocks of it stay in float."""
    steps = made.scheme.steps
    if steps and steps[-1].options.get(KEEP):
        return "mixed"
    precision = (made.scheme.precision or "").partition("-")[0]
    if precision:
        return precision
    return "float" if not steps else steps[-1].name
