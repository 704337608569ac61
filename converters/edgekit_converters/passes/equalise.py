"""Equalisation: neighbouring weights share their ranges, so that one scale suits all channels.

Where a weight's channels differ in range, a tensor between it and the next weight is scaled by
channel until both have the same (cross-layer equalisation: Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", 2019, section 4.1). The model's answers stay what
they were, bit for bit. It helps most where weights are quantised with one scale for all channels.

The paper's bias correction is an option of `static-int8`, which knows the rounding errors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.errors import BuildError
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibration
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.edits import checked, copied, step_options
from edgekit_converters.passes.junctions import (
    Junction,
    Values,
    junctions_of,
    powers_of_two,
    read,
    scaled,
    store,
    values_of,
    written,
)

NAME = "equalise"
_MOST_ROUNDS = 20


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass: nothing yet."""


class Equalise:
    """The pass."""

    kind: Kind = "preparation"
    needs_samples = False

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,  # noqa: ARG002
        style: Style,  # noqa: ARG002
    ) -> tuple[Step, ...]:
        step = self.step(given)
        return (step,) if _equalised(model) else ()

    def step(self, options: Mapping[str, Option]) -> Step:
        return Step(name=NAME, label=NAME, options=step_options(checked(options, Options, of=NAME)))

    def apply(
        self,
        model: onnx.ModelProto,
        step: Step,
        *,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> onnx.ModelProto:
        checked(step.options, Options, of=NAME)
        values = _equalised(model)
        if not values:
            raise BuildError(
                f"{NAME}: no two weights of this model can share their ranges: it has no pair"
                " joined directly, or by ReLU or pooling, whose channels differ in range",
                hint="take equalise out of the recipe",
            )
        copy = copied(model)
        store(copy, values)
        return copy


def _equalised(model: onnx.ModelProto) -> Values:
    """The constants that equalisation changes, by name."""
    junctions = [junction for junction in junctions_of(model) if junction.weighted]
    before: Values = values_of(model, junctions)
    values = before
    # A weight in the middle of a chain belongs to two junctions: each round settles it further.
    for _ in range(_MOST_ROUNDS):
        settled = True
        for junction in junctions:
            factors = equalising(values, junction)
            if (factors != 1).any():
                values, settled = scaled(values, junction, factors), False
        if settled:
            break
    return {
        name: array for name, array in values.items() if not np.array_equal(array, before[name])
    }


def equalising(values: Values, junction: Junction) -> NDArray[np.float32]:
    """Factors of a junction's channels that give both sides the same range, to a factor of two."""
    made = written(values, junction.sources[0]).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return powers_of_two(np.sqrt(read(values, junction) / made))


PASS = Equalise()
