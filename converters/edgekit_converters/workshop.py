"""Workshop: a source with its data, and everything about it that several profiles share.

What is expensive is done once: the source's own answers, normal forms and calibrations by the caps
of an engine, and the answers of an artefact by its digest. A second profile that ends in the same
bytes costs nothing more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.errors import EngineError, ModelError
from edgekit.manifest import TensorSpec
from edgekit.profile import EngineSpec
from edgekit.recipe import Recipe
from edgekit_converters import data as data_
from edgekit_converters import evidence
from edgekit_converters.calibrate import Calibrator
from edgekit_converters.data import Parts
from edgekit_converters.evaluate import class_scores
from edgekit_converters.normalise import Normalised, fixed, normalise, opset_of, serialise
from edgekit_converters.source import OnnxSource, Source, TfliteSource
from edgekit_converters.targets.litert import open_source
from edgekit_converters.targets.onnxruntime_cpu import cpu_options
from edgekit_runtime.engines import ENGINES, Session
from edgekit_runtime.engines.batches import run_all

MAX_EVALUATION = 1000
MAX_ANSWER_BYTES = 256 << 20
_BATCH = 8
Arrays = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Answers:
    """Outputs by name, axis 0 counting samples; `evaluation` is None without data."""

    golden: Arrays
    evaluation: Arrays | None


@dataclass(frozen=True)
class DataFacts:
    """What is kept of the samples that were given, beside the parts.

    Attributes:
        sha256: identity of all samples, their labels and groups.
        names: class names by label, where the data names its classes.
    """

    sha256: str
    samples: int
    groups: int
    names: tuple[str, ...]


class Workshop:
    """A source, its data and what was worked out about them.

    Args:
        source: as read.
        shapes: input shapes that the caller fixes.
        data: where samples are; None for none.
        scratch: a folder for temporary files, which the caller removes.

    Raises:
        ModelError: the engine cannot run the source.
        DataError: the samples do not fit the model.
    """

    def __init__(
        self, source: Source, *, recipe: Recipe, shapes: Shapes, data: Path | None, scratch: Path
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.shapes = dict(shapes)
        self.scratch = scratch
        self._normal: dict[tuple[int, int], Normalised] = {}
        self._calibrators: dict[tuple[int, int], Calibrator] = {}
        self._answers: dict[tuple[str, str, str], Answers] = {}
        self.inputs, self.outputs = self._interface()
        self.data, self.parts = self._samples(data)
        self.reference = self._reference()
        if data is not None and (scores := class_scores(self.reference.golden)):
            classes = self.reference.golden[scores].shape[1]
            data_.check_labels(self.parts, classes, what=str(data))

    def normal(self, engine: EngineSpec) -> Normalised:
        """The model in the normal form that an engine takes."""
        return self._normal_form(max_opset=engine.max_opset, max_ir=engine.max_onnx_ir)

    def calibrator(self, engine: EngineSpec) -> Calibrator | None:
        """Ranges of that normal form; None without calibration samples."""
        if self.parts.calibration is None:
            return None
        caps = engine.max_opset, engine.max_onnx_ir
        if caps not in self._calibrators:
            self._calibrators[caps] = Calibrator(
                self.normal(engine).model,
                inputs=self.inputs,
                arrays=self.parts.calibration.arrays,
                scratch=self.scratch,
            )
        return self._calibrators[caps]

    def write(self, model: onnx.ModelProto, name: str) -> Path:
        """A model as a file below `scratch`."""
        path = self.scratch / f"{name}.onnx"
        path.write_bytes(serialise(model))
        return path

    def answers(self, artifact: Path, *, engine: str, options: Mapping[str, Any]) -> Answers:
        """What an artefact answers to the golden and evaluation samples on this machine."""
        key = (
            hashlib.sha256(artifact.read_bytes()).hexdigest(),
            engine,
            json.dumps(options, sort_keys=True),
        )
        if key not in self._answers:
            session = ENGINES.get(engine).open(artifact, options=options)
            try:
                self._answers[key] = self._run(session)
            finally:
                session.close()
        return self._answers[key]

    def second_opinion(self, artifact: Path, *, engine: str) -> Arrays:
        """What an artefact answers to the golden samples with the engine's plainest kernels."""
        session = ENGINES.get(engine).open(artifact, options={"reference_kernels": True})
        try:
            return run_all(session, self.parts.golden.arrays, max_batch=_BATCH)
        finally:
            session.close()

    def _run(self, session: Session) -> Answers:
        evaluation = self.parts.evaluation
        return Answers(
            golden=run_all(session, self.parts.golden.arrays, max_batch=_BATCH),
            evaluation=None
            if evaluation is None
            else run_all(session, evaluation.arrays, max_batch=_BATCH),
        )

    def _interface(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if isinstance(self.source, TfliteSource):
            return open_source(self.source)
        normal = self._normal_form(
            max_opset=opset_of(self.source.model), max_ir=self.source.model.ir_version
        )
        return normal.inputs, normal.outputs

    def _normal_form(self, *, max_opset: int, max_ir: int) -> Normalised:
        assert isinstance(self.source, OnnxSource)
        caps = max_opset, max_ir
        if caps not in self._normal:
            self._normal[caps] = normalise(
                self.source.model,
                shapes=self.shapes,
                max_opset=max_opset,
                max_ir=max_ir,
                # A round sends weights back under the names they have here.
                fold=self.recipe.training is None,
            )
        return self._normal[caps]

    def _samples(self, data: Path | None) -> tuple[DataFacts | None, Parts]:
        if data is None:
            return None, data_.synthetic(self.inputs, self.recipe.split)
        samples = data_.load(data, self.inputs, steps=self.recipe.preprocess)
        facts = DataFacts(
            sha256=evidence.data_sha256(samples),
            samples=samples.count,
            groups=len(set(samples.groups.tolist())),
            names=samples.names,
        )
        return facts, data_.split(samples, self.recipe.split)

    def _reference(self) -> Answers:
        """The source's own answers, from the file as it came and not from its normal form.

        Evaluation is cut down here to what its answers leave room for.
        """
        try:
            session = self._open_source()
            try:
                golden = run_all(session, self.parts.golden.arrays, max_batch=_BATCH)
                _require_numbers(golden, what=str(self.source.path))
                self.parts = _bounded(self.parts, golden)
                return self._run(session)
            finally:
                session.close()
        except EngineError as e:
            raise ModelError(
                f"{self.source.path} cannot be run: {e.message}",
                hint=e.hint or "where it declares a wrong input shape, fix it with --input",
            ) from e

    def _open_source(self) -> Session:
        if isinstance(self.source, TfliteSource):
            return ENGINES.get("litert").open(self.source.path, options={"threads": 1})
        path = self.write(fixed(self.source.model, self.shapes), "source")
        return ENGINES.get("onnxruntime").open(path, options=cpu_options(threads=1))


def _require_numbers(golden: Arrays, *, what: str) -> None:
    """Refuse a source whose own answers nothing can be compared with."""
    for name, array in golden.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelError(
                f"{what}: its output {name!r} holds NaN or an infinite value on the golden samples",
                hint="check its weights, and that the data is prepared as the model expects",
            )


def _bounded(parts: Parts, golden: Arrays) -> Parts:
    """The parts with as many evaluation samples as their answers may take in memory."""
    if parts.evaluation is None:
        return parts
    sample_bytes = sum(array[0].nbytes for array in golden.values())
    affordable = max(data_.MIN_EVALUATION, MAX_ANSWER_BYTES // max(sample_bytes, 1))
    evaluation = data_.bounded(parts.evaluation, min(MAX_EVALUATION, affordable))
    notes = list(parts.notes)
    if evaluation.count < parts.evaluation.count:
        notes.append(f"{evaluation.count} of {parts.evaluation.count} evaluation samples are used")
    return replace(parts, evaluation=evaluation, notes=tuple(notes))
