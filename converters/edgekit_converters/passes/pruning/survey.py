"""Survey: for every group of channels, in which order they go and what that costs.

The samples are halved, in the order they have, so that what belongs together mostly stays together.
One half fits, the other one judges: late layers have more features than a few samples can tell
apart, and the error on samples that were fitted says nothing. How the error of a layer reaches the
outputs is measured, by one trial for each group; the curve through it is closed-form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekit_converters.calibrate import Calibration
from edgekit_converters.passes.pruning.allocation import Curve
from edgekit_converters.passes.pruning.elimination import Problem, eliminate, energy
from edgekit_converters.passes.pruning.groups import Group
from edgekit_converters.passes.pruning.layers import Matrix, stored
from edgekit_converters.passes.pruning.moments import Moments
from edgekit_converters.passes.pruning.plan import Plan
from edgekit_converters.passes.pruning.refit import pruned
from edgekit_converters.passes.pruning.variety import VIEWS, varied

_TRIAL = 0.25
_JUDGED = 6
_TINY = 1e-30

Seen = Mapping[str, Moments]
Reference = list[dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Candidate:
    """A group with the order in which its units go.

    Attributes:
        turns: units (root ids) that go in each turn.
        curve: relative squared error of the model's outputs, and time saved, by number of turns.
    """

    group: Group
    turns: tuple[NDArray[np.int64], ...]
    curve: Curve


@dataclass(frozen=True)
class Survey:
    """What calibration samples say of a plan.

    Attributes:
        moments: by node, of every layer of the plan, over all samples.
    """

    plan: Plan
    candidates: tuple[Candidate, ...]
    moments: Seen


def survey(model: onnx.ModelProto, plan: Plan, *, calibration: Calibration) -> Survey:
    """Look at a model on calibration samples.

    Raises:
        EngineError: the model cannot be run.
    """
    judging, fitting, moments, reference = _observe(model, plan, calibration)
    candidates = []
    for group, counts in plan.groups:
        if not all(moments[reader.consumer.node].finite for reader in group.readers):
            continue
        order, errors = _judged(model, group, counts, plan, fitting=fitting, judging=judging)
        trial = max(1, round(_TRIAL * group.size / max(counts)))
        trial = min(trial, len(counts))
        if reference and errors[trial] > 0:
            gone = group.units[np.concatenate(order[:trial])]
            attempt = pruned(
                model, plan.channels, gone.tolist(), layers=plan.layers, moments=fitting
            )
            found = _measured(attempt, calibration, reference)
            errors = errors * (found / errors[trial])
        if not np.isfinite(errors).all():
            continue
        removals = eliminate(_problems(model, group, plan, moments), counts)
        saved = np.cumsum([0, *counts]) * group.unit_work
        candidates.append(
            Candidate(
                group=group,
                turns=tuple(group.units[removal.units] for removal in removals),
                curve=Curve(tuple(errors.tolist()), tuple(saved.tolist())),
            )
        )
    return Survey(plan, tuple(candidates), moments)


def _observe(
    model: onnx.ModelProto, plan: Plan, calibration: Calibration
) -> tuple[Seen, Seen, Seen, Reference]:
    """Moments of one half as it is, of the other half as it is and varied, and of both; float
    outputs of the first half."""
    outputs = [
        value.name
        for value in model.graph.output
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    half = _count(model, calibration) // 2
    judging, fitting, both = (
        {name: Moments(layer.features) for name, layer in plan.layers.items()} for _ in range(3)
    )
    sources = {layer.consumer.source for layer in plan.layers.values()}
    reference = []
    for number, tensors in enumerate(calibration.activations(model, {*sources, *outputs})):
        if number < half and outputs:
            reference.append({name: tensors[name] for name in outputs})
        _add(judging if number < half else fitting, plan, tensors, number)
    for view in VIEWS:
        changed = varied(model, view)
        if changed is not None:
            for number, tensors in enumerate(calibration.activations(changed, sources)):
                _add(both if number < half else fitting, plan, tensors, number)
    for name, moments in both.items():
        moments.include(fitting[name])
        if half:
            moments.include(judging[name])
    # One sample alone fits and judges.
    return judging if half else fitting, fitting, both, reference


def _add(seen: Seen, plan: Plan, tensors: Mapping[str, NDArray[Any]], number: int) -> None:
    for name, layer in plan.layers.items():
        seen[name].add(layer.rows(tensors[layer.consumer.source], sample=number))


def _problems(model: onnx.ModelProto, group: Group, plan: Plan, seen: Seen) -> Sequence[Problem]:
    problems = []
    for reader in group.readers:
        layer = plan.layers[reader.consumer.node]
        problems.append(
            Problem(
                weight=stored(model, layer)[0],
                covariance=seen[reader.consumer.node].covariance(centred=layer.biased),
                positions=layer.features_of(reader.positions),
            )
        )
    return problems


def _readers(group: Group, plan: Plan) -> list[tuple[str, bool]]:
    """Names of the group's readers, and whether each has a bias that can follow a shift."""
    nodes = [reader.consumer.node for reader in group.readers]
    return [(node, plan.layers[node].biased) for node in nodes]


def _judged(
    model: onnx.ModelProto,
    group: Group,
    counts: Sequence[int],
    plan: Plan,
    *,
    fitting: Seen,
    judging: Seen,
) -> tuple[list[NDArray[np.intp]], Matrix]:
    """Units in the order in which they go by the fitting half, and the error of the group's readers
    on the judging half by number of turns, never falling."""
    problems = _problems(model, group, plan, fitting)
    held = _problems(model, group, plan, judging)
    shifts = [
        judging[node].mean(centred=biased) - fitting[node].mean(centred=biased)
        for node, biased in _readers(group, plan)
    ]
    scales = [1 / max(energy(problem.weight, problem.covariance), _TINY) for problem in held]
    at = np.unique(np.linspace(0, len(counts), _JUDGED + 1).round().astype(np.intp))
    order, errors = [], [0.0]
    for turn, removal in enumerate(eliminate(problems, counts), start=1):
        order.append(removal.units)
        if turn in at:
            error = 0.0
            for problem, weight, shift, scale in zip(
                held, removal.weights, shifts, scales, strict=True
            ):
                lost = problem.weight - weight
                error += scale * energy(lost, problem.covariance)
                error += scale * float(np.square(lost @ shift).sum())
            errors.append(max(error, errors[-1]))
    smooth: Matrix = np.interp(np.arange(len(counts) + 1), at, errors)
    return order, smooth


def _measured(attempt: onnx.ModelProto, calibration: Calibration, reference: Reference) -> float:
    """Squared error of the outputs over the first samples, as a share of their variance."""
    wrong = dict.fromkeys(reference[0], 0.0)
    first = islice(calibration.activations(attempt, wrong), len(reference))
    for wanted, given in zip(reference, first, strict=True):
        for name in wrong:
            wrong[name] += float(np.square(given[name] - wanted[name]).mean())
    errors = [
        total / len(reference) / max(_variance([outputs[name] for outputs in reference]), _TINY)
        for name, total in wrong.items()
    ]
    return sum(errors) / len(errors)


def _variance(outputs: Sequence[NDArray[Any]]) -> float:
    return float(np.concatenate([output.reshape(-1) for output in outputs]).var(dtype=np.float64))


def _count(model: onnx.ModelProto, calibration: Calibration) -> int:
    """How many samples there are: a model that only hands one input on is run on all of them."""
    value = model.graph.input[0]
    nothing = helper.make_node("Identity", [value.name], ["edgekit.counted"], "edgekit.count")
    graph = helper.make_graph([nothing], "count", list(model.graph.input), [])
    counter = helper.make_model(graph, ir_version=model.ir_version)
    del counter.opset_import[:]
    counter.opset_import.extend(model.opset_import)
    return sum(1 for _ in calibration.activations(counter, ["edgekit.counted"]))
