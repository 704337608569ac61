"""Bench: the search for one engine of a profile, and what of it may ship.

What may be composed is said by `offers`, what is made next by `search`, what it does by `trials`,
and what of it ships by `finals`; this module joins them and keeps what was found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters import accounts, finals, gate, offers, prospects, search
from edgekit_converters.artefact import Made, figures
from edgekit_converters.measure import Measurer, Timing, speedup
from edgekit_converters.passes import Scheme
from edgekit_converters.report import Rejected, Tried
from edgekit_converters.search import Proposal, Space, Trial
from edgekit_converters.targets import Target
from edgekit_converters.trials import FLOAT, Record, Trials
from edgekit_converters.workshop import Workshop

Say = Callable[[str], None]
SOURCE = Scheme().name


@dataclass(frozen=True)
class Line:
    """What was made for one engine.

    Attributes:
        parent: the artefact that no pass changed; None where the engine cannot take the source.
        rungs: what may ship beside it, fastest first: all proven, or one that is not.
        tried: every scheme that was made or attempted, in order.
        truncated: the time limit ended the search.
    """

    parent: Made | None
    rungs: tuple[Made, ...] = ()
    tried: tuple[Tried, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    truncated: bool = False
    notes: tuple[str, ...] = ()


class Bench:
    """One engine of one profile.

    Args:
        workshop: the source and its data.
        target: makes artefacts for the engine.
        measurer: takes the time of sessions side by side.
        say: is told each step.
        now: a clock in seconds, for the emergency limit alone.
    """

    def __init__(
        self,
        workshop: Workshop,
        profile: DeviceProfile,
        engine: EngineSpec,
        *,
        target: Target,
        measurer: Measurer,
        say: Say,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workshop = workshop
        self._profile = profile
        self._engine = engine
        self._target = target
        self._say = say
        self._now = now
        self._trials = Trials(workshop, profile, engine, target=target, measurer=measurer)
        self._records: dict[str, Record] = {}
        # By scheme, and `FLOAT`: its own and float's beside it.
        self._timings: dict[str, tuple[Timing, Timing]] = {}
        self._evidence = target.evidence(profile, engine)

    def line(self) -> Line:
        """Everything that can be made for this engine."""
        self._say(f"{self._profile.name}: running the source in {self._engine.name}")
        parent = self._record(Proposal(scheme=Scheme()))
        if parent.failure is not None:
            return Line(None, rejected=(self._refused(SOURCE, parent.failure),))
        limits = self._workshop.recipe.search
        space, refused = offers.space_of(
            self._workshop, self._engine, style=self._target.style, timed=self._is_timed
        )
        history, ended = self._explore(space)
        source = self._made(Scheme())
        placed = finals.settle(
            history,
            most=max(limits.variants - 1, 1),
            behind_float=limits.variants > 1 and not source.verdict.refused,
            retime=self._time,
            judged=self._made,
        )
        if not self._timings:
            self._time([])
        tried = tuple(
            accounts.tried(
                placed.history,
                self._records,
                engine=self._engine.name,
                chosen=[made.scheme.name for made in placed.rungs],
            )
        )
        return Line(
            self._made(Scheme()),
            placed.rungs,
            tried,
            (*refused, *accounts.rejected(tried)),
            truncated,
            tuple(notes),
        )

    def _space(self) -> tuple[Space, list[Rejected]]:
        """What the recipe lets the search compose, and which of its passes cannot be run here."""
        if isinstance(self._workshop.source, TfliteSource):
            return Space(), []
        specs = self._workshop.recipe.passes
        asked = specs is not None
        if specs is None:
            specs = tuple(PassSpec(name=name) for name in PASSES.names())
        refused: list[Rejected] = []
        prefix: list[Step] = []
        found: dict[Kind, list[tuple[Step, ...]]] = {kind: [] for kind in get_args(Kind)}
        for spec in specs:
            kind = PASSES.get(spec.name).kind
            offers = self._offers(spec)
            if offers and PASSES.get(spec.name).needs_samples and not self._has_samples:
                refused.append(self._refused(spec.name, "no calibration samples: give --data"))
            elif offers and asked and kind != "precision":
                prefix.append(offers[0])
            elif offers and kind == "precision":
                found[kind] += _families(offers)
            elif offers and self._has_samples and self._is_timed:
                found[kind].append(offers)
            elif asked and not offers:
                reason = f"nothing to do on this model, or not for {self._engine.name} here"
                refused.append(self._refused(spec.name, reason))
        space = Space(
            prefix=tuple(prefix),
            families=tuple(found["precision"]),
            preparations=tuple(found["preparation"]),
            rewrites=tuple(found["rewrite"]),
            blocks=blocks_of(self._workshop.normal(self._engine).model),
        )
        return space, refused

    def _offers(self, spec: PassSpec) -> tuple[Step, ...]:
        model = self._workshop.normal(self._engine).model
        return PASSES.get(spec.name).offers(
            spec.options, model=model, engine=self._engine, style=self._target.style
        )

    def _explore(self, space: Space) -> tuple[list[Trial], bool]:
        """Make one scheme after the other until nothing more is worth it."""
        limits = self._workshop.recipe.search
        started_s = self._now()
        history: list[Trial] = []
        while len(history) < limits.trials:
            proposal = search.propose(space, history)
            if proposal is None:
                return history, False
            if self._now() - started_s > limits.limit_s:
                return history, True
            self._say(f"{self._profile.name}: trial {len(history) + 1}, {proposal.scheme.name}")
            trial = self._trial(proposal)
            history.append(trial)
            self._say(f"{self._profile.name}: {_told(trial, self._records[trial.scheme.name])}")
        return history, False

    def _trial(self, proposal: Proposal) -> Trial:
        record = self._record(proposal)
        scheme = proposal.scheme
        if record.failure is not None:
            return Trial(scheme=scheme, probe=proposal.probe, reasons=(record.failure,))
        speed = None
        if record.timing is not None and record.float_timing is not None:
            speed = speedup(record.float_timing, record.timing)
        found = figures(
            record.selection,
            size_bytes=record.size_bytes,
            memory_mb=record.needs.memory_mb,
            speedup=speed,
            latency_ms=record.timing.p50_ms if record.timing else None,
        )
        reasons, headroom = self._prospect(found)
        return Trial(
            scheme=scheme,
            headroom=headroom,
            noise=record.noise,
            cost=None if proposal.probe else self._cost(scheme, record, speed),
            probe=proposal.probe,
            reasons=(*record.problems, *reasons),
        )

    def _prospect(self, found: Figures) -> tuple[tuple[str, ...], float | None]:
        """Why a scheme is not taken, and the headroom that the report can be expected to show."""
        budget, samples = self._workshop.recipe.budget, self._workshop.parts.evaluation
        if samples is None or not prospects.provable(budget, later=samples.count):
            verdict = gate.judge(found, budget)
            return verdict.reasons, prospects.headroom(found, budget, bounds=False)
        ahead = prospects.foreseen(found, later=samples.count)
        verdict = gate.judge(ahead, budget)
        doubts = tuple(f"the report could not prove it: {why}" for why in verdict.unproven)
        return (*verdict.reasons, *doubts), prospects.headroom(ahead, budget, bounds=True)

    def _settle(self, history: Sequence[Trial]) -> tuple[list[Trial], tuple[Made, ...]]:
        """Time the best again and let the gate judge what would ship, until all of it is proven.

        Where nothing can be, the best of what is not refused may ship behind the float model.
        """
        trials = list(history)
        most = self._workshop.recipe.search.variants - 1
        again = [trials[i].scheme for i in _rivals(trials, most=most)]
        unproven: list[Made] = []
        while again:
            self._time(again)
            trials = [self._retimed(trial) for trial in trials]
            rungs = search.ladder(trials, most=most)
            # What moves up for something that was taken out has not been timed well yet.
            again = [trials[i].scheme for i in rungs if trials[i].scheme.name not in self._timings]
            if again and self._is_timed:
                continue
            made = [self._made(trials[i].scheme) for i in rungs]
            wrong = [(i, m) for i, m in zip(rungs, made, strict=True) if not m.verdict.proven]
            if not wrong:
                return trials, tuple(made) or tuple(unproven[:1])
            for i, doubtful in wrong:
                verdict = doubtful.verdict
                unproven += [doubtful] if not verdict.refused else []
                reasons = (*verdict.reasons, *verdict.unproven)
                trials[i] = msgspec.structs.replace(
                    trials[i], reasons=tuple(f"on the report's samples: {why}" for why in reasons)
                )
            again = [trials[i].scheme for i in search.ladder(trials, most=most)]
        return trials, tuple(unproven[:1])

    def _time(self, schemes: Sequence[Scheme]) -> None:
        """Time schemes and float side by side, where they are not known well yet."""
        new = [scheme for scheme in schemes if scheme.name not in self._timings]
        if new or not self._timings:
            found = self._trials.time(new)
            for name, timing in found.items():
                self._timings.setdefault(name, (timing, found[FLOAT]))

    def _retimed(self, trial: Trial) -> Trial:
        if trial.scheme.name not in self._timings:
            return trial
        own, parent = self._timings[trial.scheme.name]
        low, high = speedup_quartiles(parent, own)
        reasons = trial.reasons
        if low < 1.0 and not reasons:
            reasons = (f"not clearly faster than float: {low:.2f}x to {high:.2f}x",)
        return msgspec.structs.replace(trial, cost=1 / speedup(parent, own), reasons=reasons)

    def _made(self, scheme: Scheme) -> Made:
        """An artefact with its proof on samples that nothing was chosen by, judged."""
        self._say(f"{self._profile.name}: proving {scheme.name}")
        proof, golden = self._trials.prove(scheme)
        record = self._records[scheme.name]
        path = self._trials.path(scheme)
        own, parent = self._timings.get(scheme.name if scheme.steps else FLOAT, (None, None))
        made = Made(
            scheme=scheme,
            precision=scheme.precision or self._target.source_precision(self._engine, path),
            path=path,
            engine=self._engine,
            evidence=self._evidence,
            options=self._target.options(self._engine),
            golden=golden,
            needs=record.needs,
            operators=record.operators,
            size_bytes=record.size_bytes,
            evaluation=proof.evaluation,
            largest_error=proof.largest_error,
            rounding=proof.rounding,
            timing=own,
            float_timing=parent,
        )
        budget = self._workshop.recipe.budget
        return replace(made, verdict=gate.judge(made.figures, budget, is_float=not scheme.steps))

    def _record(self, proposal: Proposal) -> Record:
        record = self._trials.record(proposal.scheme, probe=proposal.probe)
        self._records[proposal.scheme.name] = record
        return record

    def _cost(self, scheme: Scheme, record: Record, speed: float | None) -> float:
        """Time as a share of float's; without a measurement a rank: precisions in the order of the
        profile, and within one the size, which grows with what stays in float."""
        if speed is not None:
            return 1 / speed
        order = self._engine.precisions
        place = order.index(scheme.precision) if scheme.precision in order else len(order)
        share = record.size_bytes / max(self._records[SOURCE].size_bytes, 1)
        return (1 + place + min(share, 1.0)) / (2 + len(order))

    def _tried(self, history: Sequence[Trial], chosen: Sequence[str]) -> Iterable[Tried]:
        losses = [1.0 - (trial.headroom or 0.0) for trial in history]
        costs = [trial.cost or float("inf") for trial in history]
        points = list(zip(costs, losses, strict=True))
        for trial, best in zip(history, search.pareto(points), strict=True):
            record = self._records[trial.scheme.name]
            found = record.selection
            timed = record.timing is not None and trial.cost
            yield Tried(
                scheme=trial.scheme.name,
                engine=self._engine.name,
                precision=trial.scheme.precision,
                size_bytes=record.size_bytes or None,
                speedup=1 / trial.cost if timed and trial.cost else None,
                agreement=found.agreement if found else None,
                drop=found.metric.drop if found else None,
                noise=trial.noise,
                probe=trial.probe,
                chosen=trial.scheme.name in chosen,
                pareto=best and trial.accepted,
                reasons=trial.reasons,
            )

    def _refused(self, scheme: str, reason: str) -> Rejected:
        return Rejected(scheme=scheme, reason=reason, engine=self._engine.name)

    @property
    def _has_samples(self) -> bool:
        return self._workshop.parts.calibration is not None

    @property
    def _is_timed(self) -> bool:
        return self._evidence == "executed"


def _families(offers: Sequence[Step]) -> list[tuple[Step, ...]]:
    """Offers that differ only in how ranges are chosen are as fast as each other: one family."""
    found: dict[str, list[Step]] = {}
    for step in offers:
        speed = {name: value for name, value in step.options.items() if name not in _RANGES}
        found.setdefault(key_of(speed), []).append(step)
    return [tuple(family) for family in found.values()]


def _rivals(trials: Sequence[Trial], *, most: int) -> list[int]:
    """What is timed again: what would ship, and what is nearly as fast as the fastest."""
    rungs = search.ladder(trials, most=most)
    if not rungs:
        return []
    accepted = [(trial.cost or 0.0, i) for i, trial in enumerate(trials) if trial.accepted]
    fastest = min(cost for cost, _ in accepted)
    near = [i for cost, i in sorted(accepted) if cost <= fastest * _RIVAL][:_MOST_RIVALS]
    return sorted({*rungs, *near})


def _rejected(entry: Tried, rungs: Sequence[Made]) -> Rejected:
    reason = "; ".join(entry.reasons)
    if not reason:
        names = " and ".join(made.scheme.name for made in rungs)
        reason = f"within the budget, but {names} ranked before it" if names else "not chosen"
    return Rejected(
        scheme=entry.scheme,
        reason=reason,
        engine=entry.engine,
        speedup=entry.speedup,
        agreement=entry.agreement,
    )


def _told(trial: Trial, record: Record) -> str:
    """A trial in one line for whoever watches."""
    found = record.selection
    parts = [trial.scheme.name]
    if record.timing is not None and trial.cost:
        parts.append(f"{1 / trial.cost:.2f}x")
    if found is not None and found.agreement is not None:
        parts.append(f"agreement {found.agreement:.3f}")
    elif found is not None:
        parts.append(f"{found.metric.name} {found.metric.value:.4g}")
    return ", ".join([*parts, *trial.reasons])
