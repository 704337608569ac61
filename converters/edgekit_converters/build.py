"""Build: from a source to one signed, measured bundle for one board.

Read top down: for each engine of the profile what `bench` makes of the source, then the gate's
outcome, the report and the bundle. What may ship is decided by `gate` and `search`, how it is made
by `targets` and `passes`; this module only joins them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from edgekit.errors import BuildError, EngineError, UsageError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters import gate, placement
from edgekit_converters.artefact import Made
from edgekit_converters.assemble import assemble
from edgekit_converters.bench import SOURCE, Bench, Line, Say
from edgekit_converters.gate import Gate, Verdict
from edgekit_converters.measure import Measurer
from edgekit_converters.passes import KEEP
from edgekit_converters.report import BundleReport, Rejected
from edgekit_converters.summary import Findings, Order
from edgekit_converters.targets import Format, target_for
from edgekit_converters.toolchains.pins import not_installed
from edgekit_converters.workshop import Workshop


def build(
    workshop: Workshop,
    profile: DeviceProfile,
    order: Order,
    *,
    measurer: Measurer,
    say: Say,
    engines: Sequence[str] = (),
) -> BundleReport:
    """Build for one profile and write the bundle and its report below `order.out`.

    Args:
        workshop: the source and its data, shared by all profiles of a command.
        order: what the bundle is called, who signs it and where it goes.
        measurer: takes the time of artefacts.
        say: is told each step.
        engines: names of those to build for; empty for the preferred one of each accelerator.

    Returns:
        What was found. Where the gate refuses, `path` is None and nothing was written.

    Raises:
        BuildError: no engine of the profile takes the source.
        StorageError: the bundle could not be written; nothing of it is left.
    """
    started_s = time.monotonic()
    lines = _lines(workshop, profile, wanted=engines, measurer=measurer, say=say)
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
    the most accurate; what the data could not prove stands behind all of them.

    Args:
        most: variants of one engine.
    """
    named: dict[str, Made] = {}
    last: list[Made] = []
    for line in lines:
        proven = [made for made in line.rungs if not made.verdict.unproven]
        parent = [made for made in (line.parent,) if made and not made.verdict.refused]
        first = (*proven, *parent)[:most]
        for made in first:
            named[_free_name(made, named)] = made
        unproven = [made for made in line.rungs if made.verdict.unproven]
        last += unproven[: most - len(first)]
    for made in last:
        named[_free_name(made, named)] = made
    return named


def _lines(
    workshop: Workshop,
    profile: DeviceProfile,
    *,
    wanted: Sequence[str],
    measurer: Measurer,
    say: Say,
) -> list[Line]:
    """What is made for each engine that a build is for, and why nothing is for others."""
    form = workshop.source.format
    hindrances = {i: _hindrance(e, form) for i, e in enumerate(profile.engines)}
    usable = [i for i, hindrance in hindrances.items() if hindrance is None]
    lines = []
    for i in chosen(profile, wanted=wanted, usable=usable):
        engine, hindrance = profile.engines[i], hindrances[i]
        target = target_for(engine)
        if target is None or hindrance is not None:
            told = [str(hindrance), *_not_covered(workshop, profile, engine)]
            lines.append(_stopped(engine, "; ".join(told)))
            continue
        bench = Bench(workshop, profile, engine, target=target, measurer=measurer, say=say)
        try:
            lines.append(bench.line())
        except (BuildError, EngineError) as e:
            # What stops one engine's tools says nothing of the board's others.
            lines.append(_stopped(engine, e.with_hint))
    return lines


def _not_covered(workshop: Workshop, profile: DeviceProfile, engine: EngineSpec) -> tuple[str, ...]:
    """What the accelerator would not take: nobody is to install a tool chain and learn it then."""
    target = target_for(engine)
    if target is None or workshop.source.format != "onnx":
        return ()
    coverage = target.coverage(workshop.normal(engine).model, engine)
    return placement.coverage_problems(coverage, placement.floor_of(profile, engine), engine)


def _stopped(engine: EngineSpec, why: str) -> Line:
    """A line of nothing but the reason for that."""
    reason = f"{engine.name} on the {engine.accelerator}: {why}"
    return Line(None, rejected=(Rejected(scheme=SOURCE, reason=reason, engine=engine.name),))


def _hindrance(engine: EngineSpec, form: Format) -> str | None:
    """Why nothing can be made for an engine of a source of this format; None where it can."""
    target = target_for(engine)
    if target is None:
        return "nothing makes artefacts for it"
    if target.format != form and not (form == "onnx" and target.toolchains):
        return f"it takes a .{target.format} source"
    return not_installed(target.toolchains) if form == "onnx" else None


def chosen(profile: DeviceProfile, *, wanted: Sequence[str], usable: Sequence[int]) -> list[int]:
    """Positions of the engines that a build is for, as the profile orders them.

    Those of a wanted name; without one the first usable of each accelerator, and where none is
    usable the first, which says why.

    Raises:
        UsageError: the board has no engine of a wanted name.
    """
    names = [engine.name for engine in profile.engines]
    for name in wanted:
        if name not in names:
            raise UsageError(
                f"profile {profile.name} has no engine {name!r}",
                hint=f"it has {', '.join(dict.fromkeys(names))}",
            )
    if wanted:
        return [i for i, name in enumerate(names) if name in wanted]
    first: dict[str, int] = {}
    for i in (*usable, *range(len(names))):
        first.setdefault(profile.engines[i].accelerator, i)
    return sorted(first.values())


def _require_any(workshop: Workshop, profile: DeviceProfile, lines: Sequence[Line]) -> None:
    if any(line.parent or line.tried for line in lines):
        return
    engines = ", ".join(f"{engine.name} ({engine.accelerator})" for engine in profile.engines)
    reasons = "".join(f"; {rejected.reason}" for line in lines for rejected in line.rejected)
    raise BuildError(
        f"profile {profile.name} has {engines}: nothing can be made for that of a"
        f" .{workshop.source.format} source{reasons}",
        hint="do what the reasons say, or choose another profile",
    )


def _outcome(workshop: Workshop, lines: Sequence[Line]) -> Gate:
    floats: dict[str, Verdict] = {}
    best: dict[str, Verdict] = {}
    rest: dict[str, Verdict] = {}
    made_for = [line for line in lines if line.engine is not None]
    for line in made_for:
        assert line.engine is not None
        # The same scheme for two engines has two verdicts.
        where = "" if len(made_for) == 1 else f" on the {line.engine.accelerator}"
        if line.parent is not None:
            floats[f"float on {line.engine.name}{where}"] = line.parent.verdict
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
    if workshop.data is None and asked and floats:
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
