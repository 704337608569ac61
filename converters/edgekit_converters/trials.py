"""Trials: one scheme made, run and timed at a time, for one engine of a profile.

Nothing is believed because a tool reported success: every artefact is opened in the engine and
answers samples there, and, where this is the machine it is for, is timed beside its float parent.
What was found is kept in the cache as soon as it is known, so that a build that was interrupted
goes on where it was, and the next one of the same inputs has nothing to make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgekit import tensors
from edgekit.errors import BuildError, EngineError, ToolChainMissing
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters import drift_reference, golden_pictures, metrics, pinned, placement
from edgekit_converters.artefact import graph_facts
from edgekit_converters.cache import key_of
from edgekit_converters.data import Samples
from edgekit_converters.evaluate import Evaluation, evaluate, max_abs_error, noise_of, scale_of
from edgekit_converters.findings import (
    Proof,
    Record,
    failed,
    product_files,
    read_product,
    read_proof,
    read_record,
    read_rerun,
    read_timings,
)
from edgekit_converters.golden import own_atol, rounding_of
from edgekit_converters.measure import Measurer, Timing, joined
from edgekit_converters.normalise import retied, serialise
from edgekit_converters.passes import PASSES, Scheme, Step
from edgekit_converters.pinned import Rerun
from edgekit_converters.source import TfliteSource
from edgekit_converters.targets import Job, Product, Target
from edgekit_converters.toolchains import TOOLCHAINS
from edgekit_converters.toolchains.driving import LimitBroken
from edgekit_converters.toolchains.environments import lock_sha256, state
from edgekit_converters.workshop import Arrays, Part, Workshop
from edgekit_runtime.engines import ENGINES, Session
from edgekit_runtime.engines.batches import iter_batches, run_all

FLOAT = "float"
# Where a session's memory comes to lie moves its latency by several per cent, so each is opened
# several times.
_OPENINGS, _QUICK_OPENINGS = 3, 1
# Engines that know the option `reference_kernels`.
_PLAIN_KERNELS = frozenset({"onnxruntime", "litert"})
# Of the samples that a simulator has time for.
_SELECTION_SHARE = 4


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
        self._floor = placement.floor_of(profile, engine)
        # Boards that differ only in where they get an engine from share what is found for it.
        same = msgspec.structs.replace(engine, wheels="")
        self._facts = (
            workshop.identity,
            target.name,
            workshop.locks(target),
            same,
            self._floor,
            self._options_here,
            self._timed,
        )
        self._metric = metrics.identity(workshop.recipe.metric), workshop.recipe.postprocess
        self._prefix = f"{profile.name}-{profile.engines.index(engine)}"
        self._job = Job(
            engine=engine,
            profile=profile,
            inputs=workshop.inputs,
            outputs=workshop.outputs,
            calibration=workshop.calibration,
            folder=workshop.scratch,
            shared=workshop.shared,
        )
        self._products: dict[str, Product] = {}
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
                files |= product_files(self.product(scheme))
        except (EngineError, ToolChainMissing, LimitBroken) as e:
            # It may have lacked memory, time or a tool; the next build asks again.
            return failed(e)
        except BuildError as e:
            found = failed(e)
            if not scheme.steps or self._target.toolchains:
                # No pass refused but a tool, of which the next build may find a better one.
                return found
        finally:
            if probe and scheme.name in self._products:
                # Nobody asks for it again, and there are many.
                self._remove(self._products.pop(scheme.name))
        files["record"] = msgspec.json.encode(found)
        self._workshop.cache.put("trial", key, files)
        return found

    def product(self, scheme: Scheme) -> Product:
        """The artefact of a scheme, below `scratch`: what lies in the cache may be trimmed."""
        known = self._products.get(scheme.name)
        if known is None:
            key = self._key(scheme, probe=False)
            stem = self._workshop.scratch / self._stem(scheme)
            kept = self._workshop.cache.recall("trial", key, lambda at: read_product(at, stem))
            known = self._products[scheme.name] = kept or self._make(scheme)
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

    def rerun(self, scheme: Scheme) -> Rerun:
        """Run a proven artefact once more in the version of the engine that the board has."""
        chain = pinned.environment_for(self._engine, profile=self._job.profile)
        if chain not in TOOLCHAINS or state(chain).status != "ready":
            return pinned.not_run(self._engine, chain)
        key = key_of(self._facts, scheme, lock_sha256(chain))
        known = self._workshop.cache.recall("rerun", key, read_rerun)
        if known is None:
            proof, golden = self.prove(scheme)
            rounding = proof.rounding
            if rounding is None and scheme.precision is not None:
                rounding = rounding_of(golden, golden)
            known = pinned.rerun(
                self.product(scheme),
                self._engine,
                chain=chain,
                inputs=self._workshop.parts.golden.in_memory(),
                expected=golden,
                tolerance=own_atol(rounding, scale=scale_of(self._workshop.reference("golden"))),
                folder=self._workshop.scratch,
            )
            # What broke a limit is tried again by the next build.
            if known.version is not None or known.problem is not None:
                self._workshop.cache.put("rerun", key, {"rerun": msgspec.json.encode(known)})
        return known

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
        files = {FLOAT: self.product(Scheme())}
        files |= {scheme.name: self.product(scheme) for scheme in schemes if scheme.steps}
        taken = [self._one_opening(files, quick=False) for _ in range(_OPENINGS)]
        found = {name: joined([timings[name] for timings in taken]) for name in files}
        self._workshop.cache.put("timing", key, {"timings": msgspec.json.encode(found)})
        return found

    def _remove(self, product: Product) -> None:
        """Remove a product's own files; those in shared folders are others' too."""
        for path in (product.path, product.stand_in):
            if path is not None and path.parent == self._workshop.scratch:
                path.unlink(missing_ok=True)

    def _found(self, scheme: Scheme, *, probe: bool) -> Record:
        product = self.product(scheme)
        needs, operators = graph_facts(product)
        placed = placement.problems(product.placement, self._floor, self._engine)
        problems = (*self._target.lint(product.path, self._engine), *placed)
        evaluation, noise = self._selected(product)
        timings = {} if probe or not self._timed else self._quick_timings(scheme, product)
        return Record(
            problems=problems,
            size_bytes=product.path.stat().st_size,
            needs=needs,
            operators=operators,
            selection=evaluation,
            noise=noise,
            timing=timings.get("candidate", timings.get(FLOAT)),
            float_timing=timings.get(FLOAT),
        )

    def _selected(self, product: Product) -> tuple[Evaluation | None, float | None]:
        if self._workshop.samples("selection") is None:
            # Without data an artefact still has to open and answer.
            self._answered(product, ["golden"])
            return None, None
        samples, reference = self._view("selection")
        (answers,) = self._answered(product, ["selection"])
        return self._evaluated(reference, answers, samples), noise_of(reference, answers)

    def _proof(self, scheme: Scheme) -> tuple[Proof, Arrays]:
        product, workshop = self.product(scheme), self._workshop
        has_evaluation = workshop.samples("evaluation") is not None
        parts: tuple[Part, ...] = ("golden", "evaluation") if has_evaluation else ("golden",)
        golden, *rest = self._answered(product, parts)
        error = max_abs_error(workshop.reference("golden"), golden)
        found = answered = None
        for answers in rest:
            samples, reference = self._view("evaluation")
            answered = drift_reference.outputs_of(answers, samples.groups)
            found = self._evaluated(reference, answers, samples)
            error = max(error, found.max_abs_error)
        rounding, other = None, golden
        if scheme.precision is not None and self._timed:
            other = self._second_opinion(product, golden)
            rounding = rounding_of(golden, other)
        post = workshop.recipe.postprocess
        proof = Proof(
            evaluation=found,
            largest_error=error,
            rounding=rounding,
            slack=golden_pictures.slack(workshop.raws, post, golden, other),
            answered=answered,
        )
        return proof, golden

    def _evaluated(self, reference: Arrays, answers: Arrays, samples: Samples) -> Evaluation:
        recipe = self._workshop.recipe
        return evaluate(reference, answers, samples, metric=recipe.metric, post=recipe.postprocess)

    def _second_opinion(self, product: Product, golden: Arrays) -> Arrays:
        """The golden answers by the engine's plainest kernels; `golden` itself without such."""
        if self._engine_here not in _PLAIN_KERNELS:
            return golden
        options = {**self._options_here, **product.options, "reference_kernels": True}
        session = ENGINES.get(self._engine_here).open(product.path, options=options)
        try:
            return run_all(session, self._workshop.parts.golden.arrays, max_batch=1)
        finally:
            session.close()

    def _answered(self, product: Product, parts: Sequence[Part]) -> list[Arrays]:
        """Answers to parts of the data; a simulator, which is slow to start, is started once."""
        samples = [self._view(part)[0] for part in parts]
        if self._target.max_samples is None:
            return [self._target.answers(product, one.arrays, self._job) for one in samples]
        together = {
            name: np.concatenate([np.asarray(one.arrays[name]) for one in samples])
            for name in samples[0].arrays
        }
        answers = self._target.answers(product, together, self._job)
        ends = np.cumsum([one.count for one in samples])[:-1]
        split = {name: np.split(array, ends) for name, array in answers.items()}
        return [{name: pieces[i] for name, pieces in split.items()} for i in range(len(parts))]

    def _view(self, part: Part) -> tuple[Samples, Arrays]:
        """The samples of a part that the target has the time for, and the source's answers."""
        most = self._target.max_samples
        if most is not None and part == "selection":
            # A choice among few schemes needs less than its proof.
            most = max(most // _SELECTION_SHARE, 1)
        return self._workshop.view(part, most=most)

    def _quick_timings(self, scheme: Scheme, product: Product) -> dict[str, Timing]:
        files = {FLOAT: self.product(Scheme())}
        if scheme.steps:
            files["candidate"] = product
        return self._one_opening(files, quick=True)

    def _one_opening(self, files: Mapping[str, Product], *, quick: bool) -> dict[str, Timing]:
        """Time files side by side, at batch 1, with the first golden sample."""
        engine = ENGINES.get(self._engine_here)
        arrays = self._workshop.parts.golden.arrays
        inputs = next(iter_batches(self._workshop.inputs, arrays, size=1))
        sessions: dict[str, Session] = {}
        try:
            for name, product in files.items():
                options = {**self._options_here, **product.options}
                sessions[name] = engine.open(product.path, options=options)
            taken = self._measurer.measure(sessions, inputs, quick=quick)
        finally:
            for session in sessions.values():
                session.close()
        if self._engine.accelerator == "cpu" and self._engine.threads == 1:
            return taken
        # The CPU time of one thread is then not what a run costs.
        return {name: Timing(blocks_ms=timing.blocks_ms) for name, timing in taken.items()}

    def _make(self, scheme: Scheme) -> Product:
        source = self._workshop.source
        if isinstance(source, TfliteSource):
            path = source.copied_to(self._workshop.scratch)
            return self._target.compile(path, None, self._job)
        own = scheme.steps[-1] if scheme.steps and scheme.steps[-1].name not in PASSES else None
        by_passes = scheme.steps[:-1] if own else scheme.steps
        path = self._workshop.scratch / f"{self._stem(scheme)}.onnx"
        path.write_bytes(serialise(retied(self._model(by_passes))))
        product = self._target.compile(path, own, self._job)
        if path not in (product.path, product.stand_in):
            path.unlink()
        return product

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

    def _key(self, scheme: Scheme, *, probe: bool) -> str:
        return key_of(self._facts, scheme, self._metric, self._count("selection"), probe)

    def _stem(self, scheme: Scheme) -> str:
        return f"{self._prefix}-{key_of(scheme)[:16]}"

    def _count(self, part: Part) -> int:
        samples = self._workshop.samples(part)
        return 0 if samples is None else samples.count

    @property
    def _engine_here(self) -> str:
        """The engine that runs the same format on this machine."""
        return "litert" if self._engine.name == "tflite-runtime" else self._engine.name
