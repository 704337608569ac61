"""Prune: whole channels of convolutions and linear layers go, and what stays makes up for them.

Nothing is trained. Which channels go first, and what that costs at the outputs, is found once on
calibration samples (`pruning.survey`); how much each layer gives follows from the wanted share of
the model's time (`pruning.allocation`); the layers that read what is gone are fitted by least
squares (`pruning.refit`). Inputs and outputs of the model keep their shapes, layers that depend on
each other shrink together, and what is not understood is left alone (`pruning.rules`). The same
model, samples and options give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import onnx
from onnx import shape_inference

from edgekit.errors import BuildError
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.edits import checked, nothing_to_do, step_options
from edgekit_converters.passes.pruning.allocation import allocate
from edgekit_converters.passes.pruning.plan import plan
from edgekit_converters.passes.pruning.refit import pruned
from edgekit_converters.passes.pruning.survey import Survey, survey

_NAME = "prune"
_SHARES = (0.1, 0.15, 0.2)


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass.

    Attributes:
        share: of the model's time to remove, by an estimate that counts MACs, those of depthwise
            convolutions and output elements more than others.
        multiple: of channels that a layer keeps; kernels work on channels in blocks.
    """

    share: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = _SHARES[0]
    multiple: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16


class Prune:
    """The pass. For each set of samples it remembers one survey: offers differ in share only."""

    kind: Kind = "rewrite"
    needs_samples = True

    def __init__(self) -> None:
        self._surveys: WeakKeyDictionary[Calibration, tuple[str, Survey]] = WeakKeyDictionary()

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,  # noqa: ARG002 - channels are fewer for every engine
        style: Style,  # noqa: ARG002 - and for every style
    ) -> tuple[Step, ...]:
        """Small shares first; none beyond what the model has to give."""
        base = checked(given, Options, of=_NAME)
        shares = (base.share,) if "share" in given else _SHARES
        largest = plan(model, base.multiple).largest_share
        return tuple(self.step({**given, "share": share}) for share in shares if share <= largest)

    def step(self, options: Mapping[str, Option]) -> Step:
        chosen = checked(options, Options, of=_NAME)
        label = f"{_NAME}/{chosen.share:.2f}"
        if chosen.multiple != Options().multiple:
            label += f"/multiple-{chosen.multiple}"
        return Step(name=_NAME, label=label, options=step_options(chosen))

    def apply(
        self, model: onnx.ModelProto, step: Step, *, calibration: Calibration | None
    ) -> onnx.ModelProto:
        if calibration is None:
            raise BuildError(f"{step.label} needs calibration samples", hint="give --data")
        options = checked(step.options, Options, of=_NAME)
        found = self._survey(model, options, step.label, calibration)
        curves = [candidate.curve for candidate in found.candidates]
        wanted = options.share * found.plan.work
        chosen = allocate(curves, wanted)
        saved = sum(curve.saved[count] for curve, count in zip(curves, chosen, strict=True))
        if saved < wanted:
            raise BuildError(
                f"{step.label} finds only {saved / found.plan.work:.2f} of the model's time in"
                " channels that may go",
                hint="set a smaller share, or a smaller multiple",
            )
        removed = np.concatenate(
            [
                units
                for candidate, count in zip(found.candidates, chosen, strict=True)
                for units in candidate.turns[:count]
            ]
        ).tolist()
        smaller = pruned(
            model, found.plan.channels, removed, layers=found.plan.layers, moments=found.moments
        )
        inferred: onnx.ModelProto = shape_inference.infer_shapes(smaller, data_prop=True)
        return inferred

    def _survey(
        self, model: onnx.ModelProto, options: Options, label: str, calibration: Calibration
    ) -> Survey:
        digest = hashlib.sha256(serialise(model)).hexdigest()
        key = f"{digest}/{options.multiple}"
        known = self._surveys.get(calibration)
        if known is not None and known[0] == key:
            return known[1]
        found = plan(model, options.multiple)
        if not found.groups:
            raise nothing_to_do(
                model,
                label=label,
                wanted="convolution or linear layer whose channels only such layers read",
            )
        result = survey(model, found, calibration=calibration)
        self._surveys[calibration] = (key, result)
        return result


PASS = Prune()
