"""Optimisers: how weights follow their gradients, as nodes of the same graph.

What an optimiser remembers between steps is a *state*: a graph input `state/...` and an output
`updated/state/...` of the same shape. Every state starts as zeros, so whoever runs the graph can
make the first one from the declared shape alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec
from onnx import TensorProto

from edgekit.errors import UsageError
from edgekit_converters.autodiff.graph import Graph, TensorType

LEARNING_RATE = "learning_rate"
"""Name of the graph input that scales each step, 0-d float32."""


def updated(name: str) -> str:
    """Return the name of the output that carries the new value of a weight or state."""
    return f"updated/{name}"


class Optimiser(Protocol):
    """How a training step changes the weights."""

    def append(self, graph: Graph, gradients: Mapping[str, str]) -> list[str]:
        """Append the update of each weight to the output `updated(weight)`.

        Args:
            graph: the graph; it has the input `LEARNING_RATE`.
            gradients: the name of the gradient by the name of its weight.

        Returns:
            The names of the states, each declared in the graph and updated by it.
        """
        ...


class SGD(msgspec.Struct, frozen=True, kw_only=True):
    """Stochastic gradient descent with momentum and weight decay, in the form of torch.optim.SGD.

    With gradient `g`: `g += weight_decay * w`; `m = momentum * m + g`; `w -= learning_rate * m`.
    Without momentum there is no state; else `state/momentum/WEIGHT` for each weight.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _require(0 <= self.momentum < 1, "SGD", "momentum", self.momentum, "at least 0, below 1")
        _require(self.weight_decay >= 0, "SGD", "weight_decay", self.weight_decay, "at least 0")

    def append(self, graph: Graph, gradients: Mapping[str, str]) -> list[str]:
        """Append one step for each weight."""
        states = []
        for weight, step in gradients.items():
            if self.weight_decay:
                step = _plus(graph, step, self.weight_decay, weight, like=weight)
            if self.momentum:
                state = _state(graph, "momentum", weight)
                states.append(state)
                output = updated(state)
                step = _plus(graph, step, self.momentum, state, like=weight, output=output)
            _descend(graph, weight, step, rate=LEARNING_RATE)
        return states


class Adam(msgspec.Struct, frozen=True, kw_only=True):
    """Adam with bias correction: Kingma and Ba, "Adam", ICLR 2015, algorithm 1.

    The corrections are applied to the learning rate and to epsilon, which are scalars, and not to
    the moments: the same step in fewer passes over the weights (section 2 of the paper).

    States: `state/first_moment/WEIGHT` and `state/second_moment/WEIGHT` for each weight, and
    `state/step`, 0-d float32, the number of steps taken.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _require(0 <= self.beta1 < 1, "Adam", "beta1", self.beta1, "at least 0, below 1")
        _require(0 <= self.beta2 < 1, "Adam", "beta2", self.beta2, "at least 0, below 1")
        _require(self.epsilon > 0, "Adam", "epsilon", self.epsilon, "above 0")

    def append(self, graph: Graph, gradients: Mapping[str, str]) -> list[str]:
        """Append one step for each weight."""
        step = graph.declare("state/step", TensorType(TensorProto.FLOAT, ()))
        one = graph.scalar(1, like=step)
        count = graph.add("Add", [step, one], output=updated(step))
        first_left, second_left = (
            graph.add("Sub", [one, graph.add("Pow", [graph.scalar(beta, like=step), count])])
            for beta in (self.beta1, self.beta2)
        )
        root = graph.add("Sqrt", [second_left])
        rate = graph.add("Mul", [LEARNING_RATE, graph.add("Div", [root, first_left])])
        least = graph.add("Mul", [root, graph.scalar(self.epsilon, like=step)])
        states = [step]
        for weight, gradient in gradients.items():
            first, second = (_state(graph, k, weight) for k in ("first_moment", "second_moment"))
            states += [first, second]
            square = graph.add("Mul", [gradient, gradient])
            mean = _blend(graph, first, self.beta1, gradient)
            spread = _blend(graph, second, self.beta2, square)
            floor = graph.add("Add", [graph.add("Sqrt", [spread]), _as(graph, least, like=weight)])
            _descend(graph, weight, graph.add("Div", [mean, floor]), rate=rate)
        return states


def _state(graph: Graph, kind: str, weight: str) -> str:
    return graph.declare(f"state/{kind}/{weight}", graph.type_of(weight))


def _plus(
    graph: Graph, base: str, factor: float, term: str, *, like: str, output: str | None = None
) -> str:
    """Append base + factor * term."""
    scaled = graph.add("Mul", [term, graph.scalar(factor, like=like)])
    return graph.add("Add", [base, scaled], output=output)


def _blend(graph: Graph, state: str, beta: float, new: str) -> str:
    """Append the moving average beta * state + (1 - beta) * new as the state's next value."""
    kept = graph.add("Mul", [state, graph.scalar(beta, like=state)])
    return _plus(graph, kept, 1 - beta, new, like=state, output=updated(state))


def _descend(graph: Graph, weight: str, step: str, *, rate: str) -> None:
    """Append weight - rate * step as the weight's next value."""
    scaled = graph.add("Mul", [step, _as(graph, rate, like=weight)])
    graph.add("Sub", [weight, scaled], output=updated(weight))


def _as(graph: Graph, name: str, *, like: str) -> str:
    """Cast a float32 scalar where the weight is double."""
    element = graph.type_of(like).element
    return name if element == TensorProto.FLOAT else graph.add("Cast", [name], to=element)


def _require(ok: bool, owner: str, field: str, value: float, rule: str) -> None:
    if not ok:
        raise UsageError(f"{owner}: {field} is {value}, and must be {rule}")
