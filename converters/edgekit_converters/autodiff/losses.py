"""Losses: a number to bring down, and its derivative by what the model predicts.

A loss reads one tensor of the model, the *scores*, and the graph input `labels`. Both values are
made of standard operators; the softmax is never taken apart into exponents that could overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec
import onnx

from edgekit.errors import ModelError
from edgekit_converters.autodiff.graph import Dimension, Graph, TensorType, attributes_of

LABELS = "labels"
"""Name of the graph input that holds what the model should have said."""


@dataclass(frozen=True)
class LossNodes:
    """Names of the tensors that a loss appended.

    Attributes:
        value: the loss, 0-d, in the element type of the scores.
        gradient: its derivative by the scores, in their shape.
        correct: how many samples were classified right, 0-d int64; None for a regression.
    """

    value: str
    gradient: str
    correct: str | None = None


class Loss(Protocol):
    """What a training step brings down."""

    def scores(self, nodes: list[onnx.NodeProto], output: str) -> str:
        """Return the tensor the loss reads, for a model that ends in `output`."""
        ...

    def labels(self, scores: TensorType) -> TensorType:
        """Return the type of `labels`, or raise a `ModelError` if the scores do not fit."""
        ...

    def append(self, graph: Graph, scores: str) -> LossNodes:
        """Append the loss and its derivative."""
        ...


class SoftmaxCrossEntropy(msgspec.Struct, frozen=True):
    """Mean over the batch of the negative log-probability of the right class.

    Scores are logits `[batch, classes]`, labels int64 `[batch]` from 0 to classes - 1; a label out
    of that range makes the run fail instead of teaching something wrong. Rule for a model that
    ends in `Softmax` or `LogSoftmax` over its classes (behind any `Identity`): the loss reads what
    goes into that node, because the softmax is part of the loss.
    """

    def scores(self, nodes: list[onnx.NodeProto], output: str) -> str:
        """Walk back from the output to the logits."""
        makers = {name: node for node in nodes for name in node.output}
        while (node := makers.get(output)) is not None and node.op_type == "Identity":
            output = node.input[0]
        if node is None or node.op_type not in ("Softmax", "LogSoftmax"):
            return output
        over_classes = attributes_of(node).get("axis", -1) in (1, -1)
        return node.input[0] if over_classes else output

    def labels(self, scores: TensorType) -> TensorType:
        """Return int64 `[batch]` for scores `[batch, classes]`."""
        if scores.shape is None or len(scores.shape) != 2:
            raise ModelError(
                f"softmax cross-entropy needs scores of shape [batch, classes], "
                f"and the model's have {_text(scores.shape)}",
                hint="choose another output of the model, or the mean squared error",
            )
        return TensorType(onnx.TensorProto.INT64, (scores.shape[0],))

    def append(self, graph: Graph, scores: str) -> LossNodes:
        """Append -mean(log p[label]), (p - onehot) / batch, and the count of right answers."""
        zero, one = graph.scalar(0, like=scores), graph.scalar(1, like=scores)
        first, last = graph.integers([1]), graph.integers([2])
        classes = graph.add("Slice", [graph.shape_of(scores), first, last])
        wanted = graph.add("Unsqueeze", [LABELS, first])
        # GatherElements would count a label below zero from the end: send it out of range instead.
        negative = graph.add("Less", [wanted, graph.integers([0])])
        checked = graph.add("Where", [negative, classes, wanted])
        log_p = graph.add("LogSoftmax", [scores], axis=1)
        picked = graph.add("GatherElements", [log_p, checked], axis=1)
        batch = graph.add("Cast", [graph.add("Size", [LABELS])], to=graph.type_of(scores).element)
        total = graph.add("ReduceSum", [picked], keepdims=0)
        value = graph.add("Neg", [graph.add("Div", [total, batch])])

        depth = graph.add("Squeeze", [classes])
        every = graph.add("Range", [graph.whole(0), depth, graph.whole(1)])
        right = graph.add("Where", [graph.add("Equal", [wanted, every]), one, zero])
        surplus = graph.add("Sub", [graph.add("Exp", [log_p]), right])
        gradient = graph.add("Div", [surplus, batch])

        chosen = graph.add("ArgMax", [scores], axis=1, keepdims=0)
        hits = graph.add("Cast", [graph.add("Equal", [chosen, LABELS])], to=onnx.TensorProto.INT64)
        return LossNodes(value, gradient, graph.add("ReduceSum", [hits], keepdims=0))


class MeanSquaredError(msgspec.Struct, frozen=True):
    """Mean over all elements of (score - label) squared; labels have the type of the scores."""

    def scores(self, nodes: list[onnx.NodeProto], output: str) -> str:  # noqa: ARG002
        """Return the output itself."""
        return output

    def labels(self, scores: TensorType) -> TensorType:
        """Return the type of the scores."""
        if scores.shape is None:
            raise ModelError(
                "the rank of the model's scores cannot be inferred, and the labels need it",
                hint="give the model's inputs a fixed rank and fold its constants first",
            )
        return scores

    def append(self, graph: Graph, scores: str) -> LossNodes:
        """Append mean((scores - labels)^2) and 2 (scores - labels) / size."""
        element = graph.type_of(scores).element
        miss = graph.add("Sub", [scores, LABELS])
        size = graph.add("Cast", [graph.add("Size", [scores])], to=element)
        total = graph.add("ReduceSum", [graph.add("Mul", [miss, miss])], keepdims=0)
        value = graph.add("Div", [total, size])
        gradient = graph.add("Div", [graph.add("Add", [miss, miss]), size])
        return LossNodes(value, gradient)


def _text(shape: tuple[Dimension, ...] | None) -> str:
    return "an unknown rank" if shape is None else f"shape {list(shape)}"
