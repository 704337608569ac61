"""Workshop: a source with its data, and everything about it that several profiles share.

What is expensive is done once and kept: normal forms, the calibration, the source's own answers by
the part of the data they are to. What another build of the same inputs can use lies in the cache;
the rest lives as long as the build.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit import tensors
from edgekit.errors import EngineError, ModelError
from edgekit.manifest import TensorSpec
from edgekit.profile import EngineSpec
from edgekit.recipe import Recipe
from edgekit_converters import data as data_
from edgekit_converters import dataset, evidence, golden_pictures, labels, report
from edgekit_converters.cache import Cache, code_digest, key_of
from edgekit_converters.calibrate import Calibration
from edgekit_converters.data import Parts, Samples
from edgekit_converters.forms import Forms
from edgekit_converters.golden_pictures import Raw
from edgekit_converters.grids import Grids
from edgekit_converters.inspect import macs_by_node, peak_activation_bytes
from edgekit_converters.normalise import (
    Normalised,
    fixed,
    require_no_texts,
    serialise,
    shapes_from,
)
from edgekit_converters.source import OnnxSource, Source, TfliteSource
from edgekit_converters.targets import Target
from edgekit_converters.targets.litert import open_source
from edgekit_converters.targets.onnxruntime_cpu import cpu_options
from edgekit_converters.toolchains.environments import lock_sha256, state
from edgekit_converters.toolchains.pins import chains_for
from edgekit_runtime import pipeline
from edgekit_runtime.engines import ENGINES, Session
from edgekit_runtime.engines.batches import iter_batches, run_all

MAX_EVALUATION = 1000
MAX_ANSWER_BYTES = 128 << 20
# Work on the selection samples of one trial: 200 samples of a small image classifier, fewer of a
# model that takes longer.
_SELECTION_MACS = 80_000_000_000
_SELECTION = 32, 200
_BATCH = 8

Arrays = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]
Part = Literal["golden", "selection", "evaluation"]


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
        cache: what earlier builds worked out.
        grids: of an earlier bundle, which is to be kept where they fit; None to choose all anew.

    Raises:
        ModelError: the engine cannot run the source.
        DataError: the samples do not fit the model.
        RecipeError: the recipe's pipeline does not fit it.
    """

    def __init__(
        self,
        source: Source,
        *,
        recipe: Recipe,
        shapes: Shapes,
        data: Path | None,
        scratch: Path,
        cache: Cache,
        grids: Grids | None = None,
    ) -> None:
        self.grids = grids
        self.source = source
        self.recipe = recipe
        self.shapes = dict(shapes)
        self.scratch = scratch
        self.cache = cache
        self.notes: tuple[str, ...] = ()
        if grids is not None:
            self.notes += (f"int8 scales of {grids.digest} are kept where they fit",)
        self._forms = (
            Forms(source, recipe=recipe, tools=self.tools, cache=cache)
            if isinstance(source, OnnxSource)
            else None
        )
        self._reference: dict[Part, Arrays] = {}
        self.inputs, self.outputs = self._interface()
        self.data, self.parts = self._samples(data)
        pipeline.check(
            recipe.preprocess, recipe.postprocess, inputs=self.inputs, outputs=self.outputs
        )
        self.identity = key_of(
            code_digest(),
            self.tools,
            report.machine(),
            source.sha256,
            self.shapes,
            self.data.sha256 if self.data else None,
            recipe.split,
            recipe.training,
            recipe.constants,
            grids.digest if grids else None,
        )
        self._require_memory()
        golden = self.reference("golden")
        _require_numbers(golden, what=str(source.path))
        self.parts = self._bounded(golden)
        if data is not None:
            labels.check(
                self.parts,
                golden,
                metric=recipe.metric,
                what=str(data),
                post=recipe.postprocess,
            )

    def normal(self, engine: EngineSpec) -> Normalised:
        """The model in the normal form that an engine takes."""
        assert self._forms is not None
        return self._forms.capped(
            self.shapes, max_opset=engine.max_opset, max_ir=engine.max_onnx_ir
        )

    @cached_property
    def raws(self) -> list[Raw]:
        """The golden samples that are pictures, as they came."""
        return golden_pictures.find(self.parts.golden, self.inputs, self.recipe.preprocess)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The samples that passes look at; None where there are none."""
        if self.parts.calibration is None:
            return None
        return Calibration(
            inputs=self.inputs,
            arrays=self.parts.calibration.arrays,
            scratch=self.scratch,
            grids=self.grids,
        )

    def locks(self, target: Target) -> dict[str, str]:
        """Identity of the tool chains that a target works with, by name, where they are here."""
        chains = chains_for(target.toolchains, self.source.format)
        return {name: lock_sha256(name) for name in chains if state(name).status == "ready"}

    @property
    def tools(self) -> dict[str, str]:
        """Versions of what has a hand in the artefacts, by distribution name."""
        own = evidence.tools(formats=[self.source.format])
        return own if isinstance(self.source, TfliteSource) else {**own, **self.source.tools}

    def samples(self, part: Part) -> Samples | None:
        """The samples of one part of the data."""
        return {
            "golden": self.parts.golden,
            "selection": self.parts.selection,
            "evaluation": self.parts.evaluation,
        }[part]

    def reference(self, part: Part) -> Arrays:
        """The source's own answers to a part that there is, from the file as it came."""
        if part not in self._reference:
            self._reference[part] = (
                self._golden_reference() if part == "golden" else self._source_answers(part)
            )
        return self._reference[part]

    def view(self, part: Part, *, most: int | None) -> tuple[Samples, Arrays]:
        """At most `most` samples of a part that there is, evenly spread, and the source's answers.

        Golden samples are always all there: a board reproduces each of them.
        """
        samples = self.samples(part)
        assert samples is not None
        reference = self.reference(part)
        if part == "golden" or most is None or samples.count <= most:
            return samples, reference
        which = data_.spread(samples.count, most)
        return samples.take(which), {name: array[which] for name, array in reference.items()}

    def shared(self, kind: str, facts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """A folder that `make` filled once for these facts; see `targets.Job.shared`."""
        key = key_of(code_digest(), self.tools, facts)
        folder = self.scratch / f"{kind}-{key[:16]}"
        if folder.is_dir():
            return folder
        staged = self.scratch / f".{kind}-{key[:16]}"
        shutil.rmtree(staged, ignore_errors=True)

        def copied(entry: Path) -> Path:
            return shutil.copytree(entry, staged)

        if self.cache.recall(kind, key, copied) is None:
            # An entry that goes while it is copied leaves a part of it.
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            make(staged)
            self.cache.put(kind, key, {file.name: file for file in staged.iterdir()})
        return staged.rename(folder)

    def _interface(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if isinstance(self.source, TfliteSource):
            return open_source(self.source)
        normal = self._normal_of_source()
        require_no_texts(normal.inputs, normal.outputs)
        return normal.inputs, normal.outputs

    def _normal_of_source(self) -> Normalised:
        assert self._forms is not None
        return self._forms.own(self.shapes)

    def _samples(self, data: Path | None) -> tuple[DataFacts | None, Parts]:
        if data is None:
            return None, data_.synthetic(self.inputs, self.recipe.split)
        samples = dataset.read(
            data,
            self.inputs,
            steps=self.recipe.preprocess,
            scratch=self.scratch,
            unused=self.recipe.constants,
        )
        self._believe(samples)
        dataset.check(samples, self.inputs, what=str(data))
        facts = DataFacts(
            sha256=evidence.data_sha256(samples),
            samples=samples.count,
            groups=len(set(samples.groups.tolist())),
            names=samples.names,
        )
        return facts, data_.split(samples, self.recipe.split)

    def _believe(self, samples: Samples) -> None:
        """Where samples contradict the shape that a file declares, one of them is taken for it."""
        if isinstance(self.source, TfliteSource):
            return
        declared = {spec.name: spec.shape for spec in self.inputs}
        proposed = shapes_from(samples.arrays, self.inputs)
        new = {name: shape for name, shape in proposed.items() if name not in self.shapes}
        if not new:
            return
        before = dict(self.shapes)
        self.shapes |= new
        try:
            self.inputs, self.outputs = self._interface()
            self._require_memory()
            self._try_one(samples)
        except EngineError:
            # The file was right after all; whoever checks the samples says how they do not fit.
            self.shapes = before
            self.inputs, self.outputs = self._interface()
            return
        self.notes += tuple(
            f"input {name!r} declares {list(declared[name])}, the data has {list(shape)}:"
            " the data is believed"
            for name, shape in new.items()
        )

    def _try_one(self, samples: Samples) -> None:
        session = self._open_source()
        try:
            session.run(next(iter_batches(self.inputs, samples.arrays, size=1)))
        finally:
            session.close()

    def _golden_reference(self) -> Arrays:
        key = key_of(self.identity, "golden")
        answers = self.cache.recall("reference", key, _read_answers)
        if answers is None:
            answers = self._source_answers("golden")
            self.cache.put("reference", key, {"answers": tensors.encode(answers)})
        return answers

    def _source_answers(self, part: Part) -> Arrays:
        try:
            session = self._open_source()
            try:
                samples = self.samples(part)
                assert samples is not None
                return run_all(session, samples.arrays, max_batch=_BATCH)
            finally:
                session.close()
        except EngineError as e:
            raise ModelError(
                f"{self.source.path} cannot be run: {e.message}",
                hint=e.hint
                or "fix a wrong shape with --input, a value that branches depend on with --fix",
            ) from e

    def _require_memory(self) -> None:
        """Refuse a model whose tensors would take the machine's memory, before it is run."""
        if isinstance(self.source, TfliteSource):
            return
        peak_bytes = peak_activation_bytes(self._normal_of_source().model)
        free_bytes = report.available_bytes()
        if peak_bytes is not None and peak_bytes > free_bytes // 2:
            raise ModelError(
                f"{self.source.path}: one sample takes {peak_bytes / 1e9:.1f} GB of tensors,"
                f" this machine has {free_bytes / 1e9:.1f} GB free",
                hint="fix smaller input shapes with --input",
            )

    def _open_source(self) -> Session:
        if isinstance(self.source, TfliteSource):
            return ENGINES.get("litert").open(self.source.path, options={"threads": 1})
        path = self.scratch / "source.onnx"
        model = fixed(self.source.model, self.shapes, self.recipe.constants)
        path.write_bytes(serialise(model))
        return ENGINES.get("onnxruntime").open(path, options=cpu_options(threads=1))

    def _bounded(self, golden: Arrays) -> Parts:
        """The parts with as many samples as their answers and a trial's time leave room for."""
        parts = self.parts
        if parts.evaluation is None:
            return parts
        sample_bytes = sum(array[0].nbytes for array in golden.values())
        affordable = max(data_.MIN_EVALUATION, MAX_ANSWER_BYTES // max(sample_bytes, 1))
        evaluation = data_.bounded(parts.evaluation, min(MAX_EVALUATION, affordable))
        notes = list(parts.notes)
        if evaluation.count < parts.evaluation.count:
            notes.append(f"{evaluation.count} of {parts.evaluation.count} evaluation samples count")
        least, most = _SELECTION
        wanted = min(most, max(least, _SELECTION_MACS // max(self._macs(), 1)), affordable)
        return replace(
            parts,
            evaluation=evaluation,
            selection=None if parts.selection is None else data_.bounded(parts.selection, wanted),
            notes=tuple(notes),
        )

    def _macs(self) -> int:
        if isinstance(self.source, TfliteSource):
            return 0
        macs, _ = macs_by_node(self._normal_of_source().model)
        return sum(macs.values())


def _read_answers(entry: Path) -> Arrays:
    return tensors.decode((entry / "answers").read_bytes(), what="cache")


def _require_numbers(golden: Arrays, *, what: str) -> None:
    """Refuse a source whose own answers nothing can be compared with."""
    for name, array in golden.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelError(
                f"{what}: its output {name!r} holds NaN or an infinite value on the golden samples",
                hint="check its weights, and that the data is prepared as the model expects",
            )
