"""Batch: how many samples a model takes at once, any number or a fixed one.

Promise: what comes out was run. A model whose batch was changed answers for several samples at once
what the source answers for them one by one, or it is refused with the operator that fails. The
interface changes, so no search applies this pass by itself; a recipe asks for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import shape_inference

from edgekit.errors import BuildError, EngineError
from edgekit.manifest import TensorSpec
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import serialise, spec_of
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.batch_axis import Axis, Freed, free
from edgekit_converters.passes.edits import checked, copied, step_options
from edgekit_runtime.engines import ENGINES, Tensors
from edgekit_runtime.engines.tensors import DTYPES, has_batch_axis

Size = Literal["dynamic"] | int

NAME = "batch"
_BATCH = "batch"
_TRIED_TOGETHER = 3
_LARGEST = 4096
# Shares of the largest answer. A batch is summed in another order, which noise may amplify: where
# all values of a sample are alike, a normalisation divides rounding errors by next to nothing.
_TOLERANCE = 1e-3
_TOLERANCE_ON_NOISE = 2e-2
_SEED = 20


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass.

    Attributes:
        size: `dynamic` for any number of samples, or how many; a text of digits is a number.
    """

    size: str | int = "dynamic"

    def __post_init__(self) -> None:
        if self.size != "dynamic" and not (
            str(self.size).isdecimal() and 0 < int(self.size) <= _LARGEST
        ):
            raise ValueError(f"size is `dynamic` or a number from 1 to {_LARGEST}")

    @property
    def wanted(self) -> Size:
        return "dynamic" if self.size == "dynamic" else int(self.size)


class Batch:
    """The pass."""

    kind: Kind = "rewrite"
    needs_samples = False

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,  # noqa: ARG002
        style: Style,  # noqa: ARG002
    ) -> tuple[Step, ...]:
        """What was asked for, and nothing where it was not: it changes the model's interface."""
        options = checked(given, Options, of=NAME)
        if "size" not in given or not _differs(model, options.wanted):
            return ()
        return (self.step(given),)

    def step(self, options: Mapping[str, Option]) -> Step:
        parsed = checked(options, Options, of=NAME)
        return Step(name=NAME, label=f"{NAME}/{parsed.wanted}", options=step_options(parsed))

    def apply(
        self, model: onnx.ModelProto, step: Step, *, calibration: Calibration | None
    ) -> onnx.ModelProto:
        size = checked(step.options, Options, of=NAME).wanted
        if not _differs(model, size):
            raise BuildError(
                f"{step.label}: the model has this batch already",
                hint="take the pass out of the recipe",
            )
        samples: list[Tensors] = []
        if calibration is not None:
            names = [value.name for value in model.graph.input]
            count = _TRIED_TOGETHER if size == "dynamic" else size
            samples = list(islice(calibration.activations(model, names), count))
        return with_batch(model, size, samples=samples)


def with_batch(
    model: onnx.ModelProto, size: Size, *, samples: Sequence[Tensors] = ()
) -> onnx.ModelProto:
    """A model that takes any batch or a fixed one, proven by running it; `model` is not changed.

    Args:
        model: in normal form, with inferred shapes, for a batch of 1 or of any size.
        size: `dynamic`, or how many samples it takes.
        samples: inputs of single samples to try it on; noise stands in for those that are missing.

    Raises:
        BuildError: an input's axis 0 is neither 1 nor free, or the changed model does not run, or
            answers otherwise; the message names the operator.
    """
    freed = free(copied(model), _batched_inputs(model))
    _check_outputs(freed)
    changed = freed.model
    for value in (*changed.graph.input, *changed.graph.output):
        _set_batch(value, size)
    changed = shape_inference.infer_shapes(changed, data_prop=True)
    count = _TRIED_TOGETHER if size == "dynamic" else size
    tolerance = _TOLERANCE if len(samples) >= count else _TOLERANCE_ON_NOISE
    _prove(model, changed, freed, _filled_up(samples, model, count), tolerance=tolerance)
    return changed


def _differs(model: onnx.ModelProto, size: Size) -> bool:
    wanted = -1 if size == "dynamic" else size
    return any(spec_of(value).shape[:1] != (wanted,) for value in model.graph.input)


def _batched_inputs(model: onnx.ModelProto) -> list[str]:
    specs = [spec_of(value) for value in model.graph.input]
    for spec in specs:
        if not has_batch_axis(spec):
            raise BuildError(
                f"input {spec.name!r} is {list(spec.shape)}: its axis 0 does not count samples",
                hint="export the model for a batch of 1, with the batch first in every input",
            )
    return [spec.name for spec in specs]


def _check_outputs(freed: Freed) -> None:
    for value in freed.model.graph.output:
        axis = freed.axes.get(value.name, Axis(0))
        if axis != Axis(0):
            raise BuildError(
                f"output {value.name!r} has the batch in its axis {axis.position}"
                f" ({axis.factor} values a sample), not for itself in axis 0",
                hint="turn that output with a Transpose, or build the model for one sample",
            )
        if not value.type.tensor_type.shape.dim:
            raise BuildError(
                f"output {value.name!r} has no axis that could count samples",
                hint="build the model for one sample, or give that output an axis 0",
            )


def _set_batch(value: onnx.ValueInfoProto, size: Size) -> None:
    dim = value.type.tensor_type.shape.dim[0]
    dim.Clear()
    if size == "dynamic":
        dim.dim_param = _BATCH
    else:
        dim.dim_value = size


def _filled_up(samples: Sequence[Tensors], model: onnx.ModelProto, count: int) -> list[Tensors]:
    """As many samples as wanted; the ones that are missing are noise that is always the same."""
    rng = np.random.default_rng(_SEED)
    specs = [spec_of(value) for value in model.graph.input]
    missing = count - len(samples)
    return [*samples[:count], *({s.name: _noise(s, rng) for s in specs} for _ in range(missing))]


def _noise(spec: TensorSpec, rng: np.random.Generator) -> NDArray[Any]:
    shape = (1, *spec.shape[1:])
    if -1 in shape:
        raise BuildError(
            f"a batch of input {spec.name!r}, {list(spec.shape)}, cannot be tried without samples",
            hint="give --data, or fix the other axes with --input",
        )
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if spec.datatype == "BYTES":
        raise BuildError(
            f"a batch of input {spec.name!r}, which holds texts, cannot be tried without samples",
            hint="give --data",
        )
    # 0 and 1 are valid rows of any table that is looked up.
    return rng.integers(0, 2, shape).astype(dtype)


def _prove(
    source: onnx.ModelProto,
    changed: onnx.ModelProto,
    freed: Freed,
    samples: Sequence[Tensors],
    *,
    tolerance: float,
) -> None:
    together = {name: np.concatenate([s[name] for s in samples]) for name in samples[0]}
    singles = _run(source, samples)
    lost = f" at {_called(freed.lost[0])}" if freed.lost else ""
    try:
        (batched,) = _run(changed, [together])
    except EngineError as e:
        raise _refusal(len(samples), f"does not run{lost}: {e}") from e
    for name, got in batched.items():
        wanted = np.concatenate([single[name] for single in singles])
        if got.shape != wanted.shape:
            what = f"loses samples{lost}: {name!r} is {list(got.shape)}, not {list(wanted.shape)}"
            raise _refusal(len(samples), what)
        if not _agree(got, wanted, tolerance=tolerance):
            where = lost or _first_apart(source, changed, freed, samples, tolerance=tolerance)
            raise _refusal(len(samples), f"mixes samples{where}: {name!r} is another")


def _first_apart(
    source: onnx.ModelProto,
    changed: onnx.ModelProto,
    freed: Freed,
    samples: Sequence[Tensors],
    *,
    tolerance: float,
) -> str:
    """The first node that gives a sample another value among others than alone; "" if none does."""
    there = {name for node in source.graph.node for name in node.output}
    names = [
        n for node in changed.graph.node for n in node.output if n in there & freed.axes.keys()
    ]
    together = {name: np.concatenate([s[name] for s in samples]) for name in samples[0]}
    singles = _run(_with_outputs(source, names), samples)
    (batched,) = _run(_with_outputs(changed, names), [together])
    for node in changed.graph.node:
        for name in set(node.output) & set(names):
            parts = [single[name] for single in singles]
            wanted = np.concatenate(parts, axis=freed.axes[name].position)
            got = batched[name]
            if got.shape != wanted.shape or not _agree(got, wanted, tolerance=tolerance):
                return f" at {_called(node)}"
    return ""


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    augmented = copied(model)
    given = {value.name for value in model.graph.output}
    for name in names:
        if name not in given:
            augmented.graph.output.add().name = name
    return augmented


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name!r}"


def _refusal(count: int, what: str) -> BuildError:
    return BuildError(
        f"with a batch of {count} the model {what}",
        hint="export the model with a dynamic batch axis, or build it for one sample",
    )


def _agree(got: NDArray[Any], wanted: NDArray[Any], *, tolerance: float) -> bool:
    if got.dtype.kind != "f":
        return bool(np.array_equal(got, wanted))
    scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-6))
    return bool(np.allclose(got, wanted, rtol=0, atol=tolerance * scale, equal_nan=True))


def _run(model: onnx.ModelProto, feeds: Sequence[Tensors]) -> list[dict[str, NDArray[Any]]]:
    with tempfile.TemporaryDirectory(prefix="edgekit-batch-") as folder:
        path = Path(folder) / "batch.onnx"
        path.write_bytes(serialise(model))
        session = ENGINES.get("onnxruntime").open(path, options={})
        try:
            return [session.run(inputs) for inputs in feeds]
        finally:
            session.close()


PASS = Batch()
