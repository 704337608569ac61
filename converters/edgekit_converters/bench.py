"""Bench: makes artefacts for one engine of a profile, runs each and lets the gate judge it.

Nothing is believed because a tool reported success: every artefact is opened in the engine, answers
the golden and evaluation samples, and, where this is the machine it is for, is timed beside its
float parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.errors import BuildError, EngineError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit.recipe import PassSpec
from edgekit_converters import gate, search
from edgekit_converters.artefact import Made, graph_facts
from edgekit_converters.evaluate import evaluate, max_abs_error
from edgekit_converters.measure import Measurer, Timing, joined
from edgekit_converters.passes import PASSES, Scheme
from edgekit_converters.report import Rejected
from edgekit_converters.source import TfliteSource
from edgekit_converters.targets import Target
from edgekit_converters.workshop import Workshop
from edgekit_runtime.engines import ENGINES, Engine, Session, Tensors
from edgekit_runtime.engines.batches import iter_batches

Say = Callable[[str], None]
SOURCE = "source"
# Where a session's memory comes to lie moves its latency by several per cent, so each is opened
# several times.
_OPENINGS = 3


@dataclass(frozen=True)
class Line:
    """What was made for one engine.

    Attributes:
        parent: the artefact that no pass changed; None where the engine cannot take the source.
        best: the quantised artefact that may ship; None where there is none.
        tried: how many schemes were made or attempted.
    """

    parent: Made | None
    best: Made | None = None
    tried: int = 0
    rejected: tuple[Rejected, ...] = ()


class Bench:
    """One engine of one profile.

    Args:
        workshop: the source and its data.
        target: makes artefacts for the engine.
        measurer: takes the time of sessions side by side.
        say: is told each step.
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
    ) -> None:
        self._workshop = workshop
        self._profile = profile
        self._engine = engine
        self._target = target
        self._measurer = measurer
        self._say = say
        self._prefix = f"{profile.name}-{profile.engines.index(engine)}"

    def line(self) -> Line:
        """Everything that can be made for this engine."""
        try:
            parent = self._parent()
        except BuildError as e:
            reason = f"{e.message} ({e.hint})" if e.hint else e.message
            return Line(None, rejected=(self._refused(SOURCE, reason),))
        best: Made | None = None
        tried = 0
        rejected: list[Rejected] = []
        if not isinstance(self._workshop.source, TfliteSource):
            for spec in self._workshop.recipe.passes:
                chosen, count, refused = self._search(spec, parent)
                best = chosen or best
                tried += count
                rejected += refused
        return Line(parent, best, tried, tuple(rejected))

    def _parent(self) -> Made:
        """The artefact that no pass has changed; it is timed alone."""
        source, scratch = self._workshop.source, self._workshop.scratch
        self._say(f"{self._profile.name}: running the source in {self._engine.name}")
        if isinstance(source, TfliteSource):
            path = self._target.finish(source.copied_to(scratch))
        else:
            model = self._workshop.normal(self._engine).model
            path = self._target.finish(self._workshop.write(model, f"{self._prefix}-float"))
        made = self._judged(SOURCE, self._target.source_precision(self._engine, path), path)
        if made.evidence == "executed":
            made = self._timed(made, parent=None)
        budget = self._workshop.recipe.budget
        return replace(made, reasons=gate.judge(made.figures, budget, is_float=True))

    def _search(self, spec: PassSpec, parent: Made) -> tuple[Made | None, int, list[Rejected]]:
        """Walk one pass of the recipe down its ladder."""
        ladder = PASSES.get(spec.name).ladder(
            spec.options, precisions=self._engine.precisions, style=self._target.style
        )
        if ladder and self._workshop.parts.calibration is None:
            return None, 0, [self._refused(spec.name, "no calibration samples: give --data")]
        made: dict[str, Made] = {}

        def attempt(scheme: Scheme) -> search.Trial:
            self._say(f"{self._profile.name}: trying {scheme.name}")
            try:
                artefact = self._attempt(spec, scheme, parent)
            except (BuildError, EngineError) as e:
                return search.Trial(scheme=scheme, closeness=None, reasons=(e.message,))
            made[scheme.name] = artefact
            return search.Trial(
                scheme=scheme, closeness=artefact.closeness, reasons=artefact.reasons
            )

        history, done = search.run(ladder, attempt)
        rejected = [
            self._lost(trial, made.get(trial.scheme.name))
            for position, trial in enumerate(history)
            if position != done.chosen
        ]
        best = None if done.chosen is None else made[history[done.chosen].scheme.name]
        return best, len(history), rejected

    def _attempt(self, spec: PassSpec, scheme: Scheme, parent: Made) -> Made:
        calibrator = self._workshop.calibrator(self._engine)
        assert calibrator is not None
        model = PASSES.get(spec.name).apply(
            self._workshop.normal(self._engine).model, scheme, calibrator=calibrator
        )
        name = f"{self._prefix}-{scheme.name.replace('/', '-')}"
        path = self._target.finish(self._workshop.write(model, name))
        made = self._judged(scheme.name, scheme.precision, path)
        if made.evidence == "executed":
            made = self._timed(made, parent=parent)
        problems = self._target.lint(path, self._engine)
        verdict = gate.judge(made.figures, self._workshop.recipe.budget)
        return replace(made, reasons=(*problems, *verdict))

    def _judged(self, scheme: str, precision: str, path: Path) -> Made:
        """Run an artefact on all samples and compare it with the source."""
        workshop = self._workshop
        options_here = self._target.options_here(self._profile, self._engine)
        answers = workshop.answers(path, engine=self._engine_here(), options=options_here)
        reference, samples = workshop.reference, workshop.parts.evaluation
        error = max_abs_error(reference.golden, answers.golden)
        found = None
        if reference.evaluation is not None and answers.evaluation is not None:
            assert samples is not None
            metric = workshop.recipe.metric
            found = evaluate(reference.evaluation, answers.evaluation, samples, metric=metric)
            error = max(error, found.max_abs_error)
        needs, operators = graph_facts(path)
        return Made(
            scheme=scheme,
            precision=precision,
            path=path,
            engine=self._engine,
            evidence=self._target.evidence(self._profile, self._engine),
            options=self._target.options(self._engine),
            answers=answers,
            needs=needs,
            operators=operators,
            size_bytes=path.stat().st_size,
            evaluation=found,
            largest_error=error,
        )

    def _timed(self, made: Made, *, parent: Made | None) -> Made:
        """Time an artefact beside its float parent, at batch 1, with the first golden sample."""
        engine = ENGINES.get(self._engine_here())
        options = self._target.options_here(self._profile, self._engine)
        files = {"float": (parent or made).path}
        if parent is not None:
            files["candidate"] = made.path
        arrays = self._workshop.parts.golden.arrays
        inputs = next(iter_batches(self._workshop.inputs, arrays, size=1))
        taken = [self._one_opening(engine, files, options, inputs) for _ in range(_OPENINGS)]
        own = "float" if parent is None else "candidate"
        return replace(
            made,
            timing=joined([timings[own] for timings in taken]),
            float_timing=joined([timings["float"] for timings in taken]),
        )

    def _one_opening(
        self, engine: Engine, files: Mapping[str, Path], options: Mapping[str, Any], inputs: Tensors
    ) -> dict[str, Timing]:
        sessions: dict[str, Session] = {}
        try:
            for name, path in files.items():
                sessions[name] = engine.open(path, options=options)
            return self._measurer.measure(sessions, inputs)
        finally:
            for session in sessions.values():
                session.close()

    def _engine_here(self) -> str:
        """The engine that runs the same format on this machine."""
        return "litert" if self._engine.name == "tflite-runtime" else self._engine.name

    def _refused(self, scheme: str, reason: str) -> Rejected:
        return Rejected(scheme=scheme, reason=reason, engine=self._engine.name)

    def _lost(self, trial: search.Trial, made: Made | None) -> Rejected:
        reason = "; ".join(trial.reasons) or "another scheme agrees better with the source"
        return Rejected(
            scheme=trial.scheme.name,
            reason=reason,
            engine=self._engine.name,
            speedup=made.speedup if made else None,
            agreement=made.evaluation.agreement if made and made.evaluation else None,
        )
