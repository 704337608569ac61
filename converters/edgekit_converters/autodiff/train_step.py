"""A training step as an ordinary ONNX graph, which any onnxruntime runs.

`build_training` takes a trained model and makes two graphs and the weights they start from. Both
graphs hold the model without its trainable weights, which are inputs, so the graphs are small. The
names below are a contract with whoever runs them:

| graph | inputs, in this order | outputs, in this order |
|---|---|---|
| `train` | the model's inputs, `labels`, `learning_rate`, each weight, each state | `loss`, \
`updated/WEIGHT` for each weight, `updated/STATE` for each state |
| `evaluate` | the model's inputs, `labels`, each weight | `loss`, and `correct` for a classifier |

- The model's inputs keep their names; a first dimension that is dynamic or 1 becomes `batch`.
- `labels` is what the loss says: int64 `[batch]` for `SoftmaxCrossEntropy`, the type of the scores
  for `MeanSquaredError`.
- `learning_rate` is float32, 0-d. onnxruntime takes 0-d arrays, not numpy scalars.
- A weight has the name of its initialiser and its fixed shape, float32 or float64.
- A state is `state/KIND/WEIGHT` in the shape of its weight, or `state/step`; the first one is zeros
  (see `optimisers`).
- To go on, feed each output `updated/NAME` to the input `NAME`.
- `loss` is 0-d in the float type of the scores; `correct` is 0-d int64, the number of samples whose
  greatest score is the labelled class.

The step reads old weights and writes new ones; nothing is changed in place. The same model and
options give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError
from edgekit_converters.autodiff.forward import (
    Forward,
    check_batch,
    choose_output,
    read_forward,
    value_info,
)
from edgekit_converters.autodiff.gradients import backpropagate, upstream_of
from edgekit_converters.autodiff.graph import Graph, TensorType, reads_of
from edgekit_converters.autodiff.losses import LABELS, Loss
from edgekit_converters.autodiff.optimisers import LEARNING_RATE, Optimiser, updated

LOSS = "loss"
CORRECT = "correct"

_WEIGHT_TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass(frozen=True)
class TrainingGraphs:
    """What a device needs to train, and what it starts from.

    Attributes:
        train: one step of the optimiser.
        evaluate: the loss, and for a classifier the number of right answers.
        parameters: the model's trainable weights, by name, in the order of the graphs' inputs.
    """

    train: onnx.ModelProto
    evaluate: onnx.ModelProto
    parameters: dict[str, NDArray[Any]]


def build_training(
    model: onnx.ModelProto,
    *,
    loss: Loss,
    optimiser: Optimiser,
    trainable: Sequence[str] | None = None,
    output: str | None = None,
) -> TrainingGraphs:
    """Differentiate a model and make its training step.

    The graphs use the model's opset, raised to 17 where it is older, and the lowest IR version that
    knows this opset (8 for opset 17).

    Args:
        model: the forward model, with its weights as initialisers; it is not changed.
        loss: what to bring down, `SoftmaxCrossEntropy()` or `MeanSquaredError()`.
        optimiser: how, `SGD(...)` or `Adam(...)`.
        trainable: names of the initialisers to train. By default every float32 or float64
            initialiser that reaches the loss through float tensors; 0-d ones are left out, since
            exporters fold settings such as an epsilon to those. All others stay constants.
        output: the model's output that the loss reads; needed where the model has several.

    Raises:
        ModelError: the model is not valid or uses an opset that is too new; a name in `trainable`
            is no initialiser, or not a float one, or does not influence the loss; an operator
            between a trainable weight and the loss has no gradient; a tensor of the model has a
            name that the contract above needs.
    """
    forward = read_forward(model)
    _refuse_reserved(forward)
    scores = loss.scores(forward.nodes, choose_output(forward, output))
    check_batch(forward, scores)
    weights = _weights(forward, trainable, scores)
    return TrainingGraphs(
        train=_train_graph(forward, weights, scores, loss, optimiser),
        evaluate=_evaluate_graph(forward, weights, scores, loss),
        parameters={name: numpy_helper.to_array(forward.initialisers[name]) for name in weights},
    )


def _train_graph(
    forward: Forward, weights: Sequence[str], scores: str, loss: Loss, optimiser: Optimiser
) -> onnx.ModelProto:
    graph = _begin(forward, weights)
    labels = graph.declare(LABELS, loss.labels(graph.type_of(scores)))
    rate = graph.declare(LEARNING_RATE, TensorType(TensorProto.FLOAT, ()))
    made = loss.append(graph, scores)
    gradients = backpropagate(
        graph, forward.nodes, start=scores, gradient=made.gradient, weights=weights
    )
    states = optimiser.append(graph, gradients)
    graph.add("Identity", [made.value], output=LOSS)
    kept = [*weights, *states]
    outputs = {LOSS: TensorType(graph.type_of(scores).element, ())}
    outputs |= {updated(name): graph.type_of(name) for name in kept}
    return _finish(forward, graph, "train", [*forward.inputs, labels, rate, *kept], outputs)


def _evaluate_graph(
    forward: Forward, weights: Sequence[str], scores: str, loss: Loss
) -> onnx.ModelProto:
    graph = _begin(forward, weights)
    labels = graph.declare(LABELS, loss.labels(graph.type_of(scores)))
    made = loss.append(graph, scores)
    graph.add("Identity", [made.value], output=LOSS)
    outputs = {LOSS: TensorType(graph.type_of(scores).element, ())}
    if made.correct is not None:
        graph.add("Identity", [made.correct], output=CORRECT)
        outputs[CORRECT] = TensorType(TensorProto.INT64, ())
    return _finish(forward, graph, "evaluate", [*forward.inputs, labels, *weights], outputs)


def _weights(forward: Forward, trainable: Sequence[str] | None, scores: str) -> list[str]:
    """Return the names to train, in the model's order."""
    constants = forward.initialisers
    if trainable is None:
        graph = _begin(forward, [])
        reached = upstream_of(graph, forward.nodes, scores)
        floats = [n for n, c in constants.items() if c.data_type in _WEIGHT_TYPES and c.dims]
        names = [name for name in floats if name in reached]
        if not names:
            raise ModelError(
                "no float initialiser of the model reaches its output: nothing can be trained",
                hint="export the model with its weights as float32 initialisers",
            )
        return names
    for name in trainable:
        if name not in constants:
            raise ModelError(
                f"trainable weight {name!r} is no initialiser of the model",
                hint=f"its initialisers are: {', '.join(constants) or 'none'}",
            )
        if constants[name].data_type not in _WEIGHT_TYPES:
            kind = TensorProto.DataType.Name(constants[name].data_type).lower()
            raise ModelError(
                f"trainable weight {name!r} is {kind}, and only float32 and float64 can be trained",
                hint="leave it out, or train the float model",
            )
    if not trainable:
        raise ModelError("no weight is named as trainable", hint="name one, or leave it to None")
    return [name for name in constants if name in trainable]


def _refuse_reserved(forward: Forward) -> None:
    """Keep the names of the contract free of the model's own tensors."""
    names = {*forward.inputs, *forward.initialisers}
    names.update(name for node in forward.nodes for name in node.output)
    for name in sorted(names):
        exact = name in (LABELS, LEARNING_RATE, LOSS, CORRECT)
        if exact or name.startswith(("state/", updated(""))):
            raise ModelError(
                f"the model has a tensor named {name!r}, a name that training graphs need",
                hint="rename the tensor in the model",
            )


def _begin(forward: Forward, weights: Sequence[str]) -> Graph:
    constants = [c for name, c in forward.initialisers.items() if name not in weights]
    return Graph(nodes=forward.nodes, constants=constants, types=forward.types)


def _finish(
    forward: Forward,
    graph: Graph,
    name: str,
    inputs: Sequence[str],
    outputs: Mapping[str, TensorType],
) -> onnx.ModelProto:
    """Drop what leads to no output, and write the rest as a model."""
    needed, nodes = set(outputs), []
    for node in reversed(graph.nodes):
        if any(made in needed for made in node.output):
            nodes.append(node)
            needed.update(reads_of(node))
    proto = helper.make_graph(
        list(reversed(nodes)),
        name,
        [value_info(n, graph.type_of(n)) for n in inputs],
        [value_info(n, kind) for n, kind in outputs.items()],
        [constant for n, constant in graph.constants.items() if n in needed],
    )
    made = helper.make_model(proto, opset_imports=forward.opsets, producer_name="edgekit")
    made.ir_version = helper.find_min_ir_version_for(forward.opsets, ignore_unknown=True)
    onnx.checker.check_model(made)
    return made
