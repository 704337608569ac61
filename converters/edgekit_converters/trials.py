"""Trials: one scheme made, run and timed at a time, for one engine of a profile.

Nothing is believed because a tool reported success: every artefact is opened in the engine and
answers samples there, and, where this is the machine it is for, is timed beside its float parent.
What was found is kept in the cache as soon as it is known, so that a build that was interrupted
goes on where it was, and the next one of the same inputs has nothing to make.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import onnx

from edgekit import tensors
from edgekit.errors import BuildError, EngineError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters import metrics
from edgekit_converters.artefact import graph_facts
from edgekit_converters.cache import key_of
from edgekit_converters.evaluate import Evaluation, evaluate, max_abs_error
from edgekit_converters.findings import (
    Proof,
    Record,
    failed,
    noise_of,
    read_proof,
    read_record,
    read_timings,
)
from edgekit_converters.golden import rounding_of
from edgekit_converters.measure import Measurer, Timing, joined
from edgekit_converters.normalise import retied, serialise
from edgekit_converters.passes import PASSES, Scheme, Step
from edgekit_converters.source import TfliteSource
from edgekit_converters.targets import Target
from edgekit_converters.workshop import Arrays, Part, Workshop
from edgekit_runtime.engines import ENGINES, Session
from edgekit_runtime.engines.batches import iter_batches

FLOAT = "float"
# Where a session's memory comes to lie moves its latency by several per cent, so each is opened
# several times.
_OPENINGS, _QUICK_OPENINGS = 3, 1


class Trials:
    """Makes and measures schemes for one engine of one profile.

    Args:
        workshop: the source and its data.
        target: makes artefacts for the engine.
        measurer: takes the time of sessions side by side.
    """

    def __init__(
        self,
        workshop: Workshop,
        profile: DeviceProfile,
        engine: EngineSpec,
        *,
        target: Target,
        measurer: Measurer,
    ) -> None:
        self._workshop = workshop
        self._engine = engine
        self._target = target
        self._measurer = measurer
        self._options_here = target.options_here(profile, engine)
        self._timed = target.evidence(profile, engine) == "executed"
        self._facts = (workshop.identity, engine, self._options_here, self._timed)
        self._metric = metrics.identity(workshop.recipe.metric)
        self._prefix = f"{profile.name}-{profile.engines.index(engine)}"
        self._paths: dict[str, Path] = {}
        self._proofs: dict[str, tuple[Proof, Arrays]] = {}
        self._models: dict[tuple[str, ...], onnx.ModelProto] = {}

    def record(self, scheme: Scheme, *, probe: bool = False) -> Record:
        """Make a scheme and see what it does to the selection samples; a probe is not timed."""
        key = self._key(scheme, probe=probe)
        known = self._workshop.cache.recall("trial", key, read_record)
        if known is not None:
            return known
        files: dict[str, bytes | Path] = {}
        try:
            found = self._found(scheme, probe=probe)
            if not probe:
                files["artefact"] = self.path(scheme)
        except EngineError as e:
            # It may have lacked memory; the next build asks again.
            return failed(e)
        except BuildError as e:
            found = failed(e)
            if not scheme.steps:
                # No pass refused but a tool, which may be installed by the next build.
                return found
        finally:
            if probe and scheme.name in self._paths:
                # Nobody asks for it again, and there are many.
                self._paths.pop(scheme.name).unlink()
        files["record"] = msgspec.json.encode(found)
        self._workshop.cache.put("trial", key, files)
        return found

    def path(self, scheme: Scheme) -> Path:
        """The artefact of a scheme, below `scratch`: what lies in the cache may be trimmed."""
        known = self._paths.get(scheme.name)
        if known is None:
            key = self._key(scheme, probe=False)
            kept = self._workshop.cache.recall("trial", key, lambda at: self._copied(at, scheme))
            known = self._paths[scheme.name] = kept or self._make(scheme)
        return known

    def prove(self, scheme: Scheme) -> tuple[Proof, Arrays]:
        """Run an artefact on samples that nothing was chosen by; also its golden answers."""
        if scheme.name not in self._proofs:
            key = key_of(self._facts, scheme, self._metric, self._count("evaluation"))
            known = self._workshop.cache.recall("proof", key, read_proof)
            if known is None:
                proof, golden = known = self._proof(scheme)
                files = {"proof": msgspec.json.encode(proof), "golden": tensors.encode(golden)}
                self._workshop.cache.put("proof", key, files)
            self._proofs[scheme.name] = known
        return self._proofs[scheme.name]

    def time(self, schemes: list[Scheme]) -> dict[str, Timing]:
        """Time schemes and the float parent side by side; by name of the scheme, and `FLOAT`.

        Nothing where this is not the machine that they are for.
        """
        if not self._timed:
            return {}
        key = key_of(self._facts, schemes)
        known = self._workshop.cache.recall("timing", key, read_timings)
        if known is not None:
            return known
        files = {FLOAT: self.path(Scheme())}
        files |= {scheme.name: self.path(scheme) for scheme in schemes if scheme.steps}
        taken = [self._one_opening(files, quick=False) for _ in range(_OPENINGS)]
        found = {name: joined([timings[name] for timings in taken]) for name in files}
        self._workshop.cache.put("timing", key, {"timings": msgspec.json.encode(found)})
        return found

    def _found(self, scheme: Scheme, *, probe: bool) -> Record:
        path = self.path(scheme)
        needs, operators = graph_facts(path)
        evaluation, noise = self._selected(path)
        timings = {} if probe or not self._timed else self._quick_timings(scheme, path)
        return Record(
            problems=self._target.lint(path, self._engine),
            size_bytes=path.stat().st_size,
            needs=needs,
            operators=operators,
            selection=evaluation,
            noise=noise,
            timing=timings.get("candidate", timings.get(FLOAT)),
            float_timing=timings.get(FLOAT),
        )

    def _selected(self, path: Path) -> tuple[Evaluation | None, float | None]:
        samples = self._workshop.samples("selection")
        if samples is None:
            # Without data an artefact still has to open and answer.
            self._answers(path, "golden")
            return None, None
        reference = self._workshop.reference("selection")
        answers = self._answers(path, "selection")
        metric = self._workshop.recipe.metric
        return evaluate(reference, answers, samples, metric=metric), noise_of(reference, answers)

    def _proof(self, scheme: Scheme) -> tuple[Proof, Arrays]:
        path, workshop = self.path(scheme), self._workshop
        golden = self._answers(path, "golden")
        error = max_abs_error(workshop.reference("golden"), golden)
        found = None
        samples = workshop.samples("evaluation")
        if samples is not None:
            answers = self._answers(path, "evaluation")
            reference = workshop.reference("evaluation")
            found = evaluate(reference, answers, samples, metric=workshop.recipe.metric)
            error = max(error, found.max_abs_error)
        rounding = None
        if scheme.precision is not None and self._timed:
            rounding = rounding_of(golden, workshop.second_opinion(path, engine=self._engine_here))
        return Proof(evaluation=found, largest_error=error, rounding=rounding), golden

    def _answers(self, path: Path, part: Part) -> Arrays:
        session = ENGINES.get(self._engine_here).open(path, options=self._options_here)
        try:
            return self._workshop.answers(session, part)
        finally:
            session.close()

    def _quick_timings(self, scheme: Scheme, path: Path) -> dict[str, Timing]:
        files = {FLOAT: self.path(Scheme())}
        if scheme.steps:
            files["candidate"] = path
        return self._one_opening(files, quick=True)

    def _one_opening(self, files: Mapping[str, Path], *, quick: bool) -> dict[str, Timing]:
        """Time files side by side, at batch 1, with the first golden sample."""
        engine = ENGINES.get(self._engine_here)
        arrays = self._workshop.parts.golden.arrays
        inputs = next(iter_batches(self._workshop.inputs, arrays, size=1))
        sessions: dict[str, Session] = {}
        try:
            for name, path in files.items():
                sessions[name] = engine.open(path, options=self._options_here)
            taken = self._measurer.measure(sessions, inputs, quick=quick)
        finally:
            for session in sessions.values():
                session.close()
        if self._engine.accelerator == "cpu" and self._engine.threads == 1:
            return taken
        # The CPU time of one thread is then not what a run costs.
        return {name: Timing(blocks_ms=timing.blocks_ms) for name, timing in taken.items()}

    def _make(self, scheme: Scheme) -> Path:
        source = self._workshop.source
        if isinstance(source, TfliteSource):
            return self._target.finish(source.copied_to(self._workshop.scratch))
        path = self._workshop.scratch / self._file_name(scheme)
        path.write_bytes(serialise(retied(self._model(scheme.steps))))
        return self._target.finish(path)

    def _model(self, steps: tuple[Step, ...]) -> onnx.ModelProto:
        """The model after these steps; what comes before the last is kept for the next trial."""
        if not steps:
            return self._workshop.normal(self._engine).model
        before = tuple(step.label for step in steps[:-1])
        if before not in self._models:
            self._models = {before: self._model(steps[:-1])}
        last = PASSES.get(steps[-1].name)
        calibration = self._workshop.calibration
        if last.needs_samples and calibration is None:
            raise BuildError(f"{steps[-1].label} needs calibration samples", hint="give --data")
        return last.apply(self._models[before], steps[-1], calibration=calibration)

    def _copied(self, entry: Path, scheme: Scheme) -> Path:
        copy = self._workshop.scratch / self._file_name(scheme)
        shutil.copyfile(entry / "artefact", copy)
        return copy

    def _key(self, scheme: Scheme, *, probe: bool) -> str:
        return key_of(self._facts, scheme, self._metric, self._count("selection"), probe)

    def _file_name(self, scheme: Scheme) -> str:
        return f"{self._prefix}-{key_of(scheme)[:16]}{self._workshop.suffix}"

    def _count(self, part: Part) -> int:
        samples = self._workshop.samples(part)
        return 0 if samples is None else samples.count

    @property
    def _engine_here(self) -> str:
        """The engine that runs the same format on this machine."""
        return "litert" if self._engine.name == "tflite-runtime" else self._engine.name
