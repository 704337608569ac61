"""Bench: the search for one engine of a profile, and what of it may ship.

What may be composed is said by `offers`, what is made next by `search`, what it does by `trials`,
and what of it ships by `finals`; this module joins them and keeps what was found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters import accounts, finals, gate, offers, placement, prospects, search
from edgekit_converters.artefact import Made, figures
from edgekit_converters.findings import Record
from edgekit_converters.measure import Measurer, Timing, speedup
from edgekit_converters.passes import Scheme
from edgekit_converters.report import Rejected, Tried
from edgekit_converters.search import Proposal, Space, Trial
from edgekit_converters.targets import Target
from edgekit_converters.trials import FLOAT, Trials
from edgekit_converters.workshop import Workshop

Say = Callable[[str], None]
End = Literal["done", "trials", "time"]
SOURCE = Scheme().name
FLOATS = frozenset({"fp32", "fp16", "bf16"})


@dataclass(frozen=True)
class Line:
    """What was made for one engine.

    Attributes:
        parent: the artefact that nothing has quantised; None where the engine computes in integers
            only, or cannot take the source.
        engine: what something was made for; None where nothing was.
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
    engine: EngineSpec | None = None


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
        if problems := self._not_covered():
            return Line(None, rejected=(self._refused(SOURCE, "; ".join(problems)),))
        if self._takes_source:
            self._say(f"{self._profile.name}: running the source in {self._engine.name}")
            parent = self._record(Proposal(scheme=Scheme()))
            if parent.failure is not None:
                return Line(None, rejected=(self._refused(SOURCE, parent.failure),))
        limits = self._workshop.recipe.search
        space, refused = offers.space_of(
            self._workshop, self._engine, target=self._target, timed=self._is_timed
        )
        history, ended = self._explore(space)
        placed = finals.settle(
            history,
            most=max(limits.variants - 1, 1),
            has_room=self._has_room,
            retime=self._time,
            judged=self._made,
        )
        source = self._float() if self._takes_source else None
        if source is not None and source.verdict.refused:
            refused += (self._refused(SOURCE, "; ".join(source.verdict.reasons)),)
        tried = tuple(
            accounts.tried(
                placed.history,
                self._records,
                engine=self._engine.name,
                chosen=[made.scheme.name for made in placed.rungs],
            )
        )
        return Line(
            source,
            placed.rungs,
            tried,
            (*refused, *accounts.rejected(tried)),
            truncated=ended == "time",
            notes=tuple(self._notes(source, ended, trials=len(history))),
            engine=self._engine,
        )

    def _not_covered(self) -> tuple[str, ...]:
        """Why nothing can be made for the engine, read off the graph in seconds."""
        if self._workshop.source.format != "onnx":
            return ()
        model = self._workshop.normal(self._engine).model
        found = self._target.coverage(model, self._engine)
        floor = placement.floor_of(self._profile, self._engine)
        return placement.coverage_problems(found, floor, self._engine)

    def _has_room(self) -> bool:
        """Whether an artefact that the data cannot prove may ship: never as the only one where
        there is a float model to stand before it."""
        if not self._takes_source:
            return True
        return self._workshop.recipe.search.variants > 1 and not self._float().verdict.refused

    def _explore(self, space: Space) -> tuple[list[Trial], End]:
        """Make one scheme after the other until nothing more is worth it, or a limit is reached."""
        limits = self._workshop.recipe.search
        most = min(limits.trials, self._target.max_trials or limits.trials)
        started_s = self._now()
        history: list[Trial] = []
        while (proposal := search.propose(space, history)) is not None:
            if len(history) >= most:
                return history, "trials"
            if self._now() - started_s > limits.limit_s:
                return history, "time"
            self._say(f"{self._profile.name}: trial {len(history) + 1}, {proposal.scheme.name}")
            trial = self._trial(proposal)
            history.append(trial)
            told = accounts.told(trial, self._records[trial.scheme.name])
            self._say(f"{self._profile.name}: {told}")
        return history, "done"

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
        parts = self._workshop.parts
        later = parts.evaluation.count if parts.evaluation else 0
        later = min(later, self._target.max_samples or later)
        groups = record.selection.groups if record.selection else 0
        budget = self._workshop.recipe.budget
        outlook = prospects.outlook(found, budget, groups=groups, later=later)
        noise = record.noise
        if record.selection is not None and not record.selection.finite:
            noise = math.inf
        return Trial(
            scheme=scheme,
            headroom=outlook.headroom,
            noise=noise,
            doubt=outlook.doubt,
            size_bytes=record.size_bytes,
            cost=None if proposal.probe else self._cost(scheme, record, speed),
            probe=proposal.probe,
            reasons=(*record.problems, *outlook.reasons),
        )

    def _time(self, schemes: Sequence[Scheme]) -> dict[str, tuple[Timing, Timing]]:
        """Time schemes and float side by side, where they are not known well yet."""
        new = [scheme for scheme in schemes if scheme.name not in self._timings]
        if new or not self._timings:
            found = self._trials.time(new)
            for name, timing in found.items():
                self._timings.setdefault(name, (timing, found[FLOAT]))
        return self._timings

    def _float(self) -> Made:
        self._time([])
        return self._made(Scheme())

    def _made(self, scheme: Scheme) -> Made:
        """An artefact with its proof on samples that nothing was chosen by, judged."""
        self._say(f"{self._profile.name}: proving {scheme.name}")
        proof, golden = self._trials.prove(scheme)
        record = self._records[scheme.name]
        product = self._trials.product(scheme)
        own, parent = self._timings.get(scheme.name if scheme.steps else FLOAT, (None, None))
        made = Made(
            scheme=scheme,
            precision=scheme.precision or self._target.source_precision(self._engine, product.path),
            product=product,
            engine=self._engine,
            evidence=self._evidence,
            options={**self._target.options(self._engine), **product.options},
            golden=golden,
            needs=record.needs,
            operators=record.operators,
            size_bytes=record.size_bytes,
            evaluation=proof.evaluation,
            largest_error=proof.largest_error,
            rounding=proof.rounding,
            slack=proof.slack,
            answered=proof.answered,
            timing=own,
            float_timing=parent,
        )
        budget = self._workshop.recipe.budget
        verdict = gate.judge(made.figures, budget, is_float=not scheme.steps)
        rerun = self._trials.rerun(scheme)
        reasons = (*record.problems, *verdict.reasons, *([rerun.problem] if rerun.problem else []))
        # Others with problems were refused by the search.
        return replace(made, rerun=rerun, verdict=msgspec.structs.replace(verdict, reasons=reasons))

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
        source = self._records.get(SOURCE)
        whole_bytes = source.size_bytes if source else self._workshop.source.path.stat().st_size
        share = record.size_bytes / max(whole_bytes, 1)
        return (1 + place + min(share, 1.0)) / (2 + len(order))

    def _notes(self, source: Made | None, ended: End, *, trials: int) -> Iterator[str]:
        name = self._engine.name
        if ended == "time":
            yield f"{name}: the time limit ended the search"
        elif ended == "trials":
            yield f"{name}: the search ended after {trials} trials, with more to try"
        agreement = source.evaluation.agreement if source and source.evaluation else None
        if agreement is not None and agreement < self._workshop.recipe.budget.min_agreement:
            yield (
                f"{name}: float itself gives the source's answer on {agreement:.3f} of the samples:"
                " the model does not repeat its answers, or was not normalised rightly"
            )

    def _refused(self, scheme: str, reason: str) -> Rejected:
        return Rejected(scheme=scheme, reason=reason, engine=self._engine.name)

    @property
    def _takes_source(self) -> bool:
        """Whether the engine computes what nothing has quantised; some are for integers only."""
        source = self._workshop.source
        return source.format != "onnx" or bool(FLOATS & set(self._engine.precisions))

    @property
    def _is_timed(self) -> bool:
        return self._evidence == "executed"
