"""Kept: which tensors of a float `.tflite` belong to ONNX nodes that are to stay in float.

A converter renames tensors, fuses operators and inserts others, so nothing is looked up by name.
Tensors are matched by what they hold: one sample is run through both files, and an ONNX tensor is
the TFLite tensor of as many values whose mean, spread and extremes are the same, in any layout. A
node without such a tensor was fused into what reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit_converters.autodiff.graph import reads_of
from edgekit_converters.calibrate import float_tensors
from edgekit_converters.passes.edits import constants_of
from edgekit_converters.passes.weights import weight_of
from edgekit_converters.tflite import unpacked

# Of the spread of a tensor: two engines' kernels differ by rounding only.
_TOLERANCE = 1e-3

Values = Mapping[str, NDArray[np.floating]]


def kept_tensors(
    model: onnx.ModelProto, path: Path, nodes: Iterable[str], *, there: Values, here: Values
) -> tuple[str, ...]:
    """The tensors of a float file whose operators are to stay in float, in the file's order.

    An operator that several nodes were fused into stays in float where a node with a weight is
    named; where none of them has a weight, all must be named.

    Args:
        model: with inferred shapes.
        path: the float file made of it.
        nodes: names of the ONNX nodes to leave in float.
        there, here: for one sample, what the ONNX tensors and the file's tensors hold.
    """
    named = frozenset(nodes)
    constants = constants_of(model.graph)
    weighted = {n.name for n in model.graph.node if weight_of(n, constants) is not None}
    fused: dict[str, set[str]] = {}
    for node, tensor in owners(model, matches(there, here)).items():
        fused.setdefault(tensor, set()).add(node)
    kept = set()
    for tensor, members in fused.items():
        heavy = members & weighted
        if heavy & named or (not heavy and members <= named):
            kept.add(tensor)
    return _with_helpers(path, kept, known=fused.keys())


def matches(there: Values, here: Values) -> dict[str, str]:
    """By ONNX tensor, the first TFLite tensor that holds the same values in some layout."""
    by_size: dict[int, list[tuple[str, NDArray[np.float64]]]] = {}
    for name, values in here.items():
        by_size.setdefault(values.size, []).append((name, _print(values)))
    found = {}
    for name, values in there.items():
        wanted = _print(values)
        allowed = _TOLERANCE * max(float(wanted[1]), 1e-12)
        for other, measured in by_size.get(values.size, ()):
            if np.abs(wanted - measured).max() <= allowed:
                found[name] = other
                break
    return found


def owners(model: onnx.ModelProto, matched: Mapping[str, str]) -> dict[str, str]:
    """By node, the TFLite tensor that its result went into: its own, or that of what reads it."""
    found: dict[str, str] = {}
    reader: dict[str, str] = {}
    for node in reversed(model.graph.node):
        own = [matched[name] for name in node.output if name in matched]
        later = [found[reader[n]] for n in node.output if n in reader and reader[n] in found]
        if own or later:
            found[node.name] = (own or later)[0]
        for name in reads_of(node):
            reader[name] = node.name
    return found


def tensors_to_match(model: onnx.ModelProto) -> list[str]:
    """Names of the ONNX tensors that `kept_tensors` wants the values of."""
    inputs = {value.name for value in model.graph.input}
    return [name for name in float_tensors(model) if name not in inputs]


def _with_helpers(path: Path, kept: set[str], *, known: Iterable[str]) -> tuple[str, ...]:
    """With what only kept operators read: those that no ONNX node stands for (a Pad, say), and
    inputs of the model.
    """
    graph = unpacked(path.read_bytes()).subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    readers: dict[str, list[Sequence[str]]] = {}
    steps = []
    for operator in graph.operators:
        makes = tuple(names[number] for number in operator.outputs)
        steps.append(makes)
        for number in operator.inputs:
            if number >= 0:
                readers.setdefault(names[number], []).append(makes)
    found, known = set(kept), frozenset(known)

    def helps(makes: Sequence[str]) -> bool:
        reading = [later for name in makes for later in readers.get(name, ())]
        return bool(reading) and all(not found.isdisjoint(later) for later in reading)

    for makes in reversed(steps):
        if known.isdisjoint(makes) and helps(makes):
            found.update(makes)
    inputs = [(names[number],) for number in graph.inputs]
    found.update(name for makes in inputs if helps(makes) for name in makes)
    return tuple(name for makes in (*inputs, *steps) for name in makes if name in found)


def _print(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """What tells a tensor from others of its size whatever its layout: mean, spread, extremes."""
    flat = values.reshape(-1).astype(np.float64)
    if not flat.size:
        return np.zeros(4)
    return np.array([flat.mean(), flat.std(), flat.min(), flat.max()])
