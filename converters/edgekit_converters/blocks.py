"""Blocks: a model cut into consecutive pieces that a search may leave in float one by one.

A cut lies where a single tensor carries everything that later nodes read: between the residual
blocks of a network rather than through them, so that no piece needs another's inner tensors. Where
a model has too few such places (detectors with many branches), nodes in running order are divided
evenly by their weights' work. The same model gives the same blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx

from edgekit.structs import Strict
from edgekit_converters.autodiff.graph import reads_of
from edgekit_converters.inspect import macs_by_node

MAX_BLOCKS = 16
_FEWEST_CUTS = 3


class Block(Strict, frozen=True, kw_only=True):
    """Consecutive nodes.

    Attributes:
        nodes: their names, in running order.
        share: of the model's multiply-accumulates, 0 to 1; by count of nodes where no shapes are
            known.
    """

    nodes: tuple[str, ...]
    share: float


def blocks_of(model: onnx.ModelProto, *, most: int = MAX_BLOCKS) -> tuple[Block, ...]:
    """Cut the main graph of a model into at most `most` blocks that hold work each.

    Args:
        model: in normal form: nodes in order and named.
    """
    nodes = list(model.graph.node)
    macs, _ = macs_by_node(model)
    work = [float(macs.get(node.name, 0)) for node in nodes]
    if not any(work):
        work = [1.0] * len(nodes)
    pieces = _pieces(_cuts(model), len(nodes))
    if len(pieces) < _FEWEST_CUTS + 1:
        pieces = [(i, i + 1) for i in range(len(nodes))]
    total = sum(work)
    return tuple(
        Block(
            nodes=tuple(node.name for node in nodes[start:end]),
            share=sum(work[start:end]) / total,
        )
        for start, end in _merged(pieces, work, most=most)
    )


def _cuts(model: onnx.ModelProto) -> list[int]:
    """Positions between nodes that one tensor alone crosses."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    last_use = {name: i for i, node in enumerate(graph.node) for name in reads_of(node)}
    last_use |= {value.name: len(graph.node) for value in graph.output}
    alive = {value.name for value in graph.input} - constants
    found = []
    for i, node in enumerate(graph.node):
        alive |= {name for name in node.output if name}
        alive = {name for name in alive if last_use.get(name, -1) > i}
        if len(alive) == 1 and i + 1 < len(graph.node):
            found.append(i + 1)
    return found


def _pieces(cuts: Sequence[int], count: int) -> list[tuple[int, int]]:
    edges = [0, *cuts, count]
    return [(a, b) for a, b in itertools.pairwise(edges) if a < b]


def _merged(
    pieces: Sequence[tuple[int, int]], work: Sequence[float], *, most: int
) -> list[tuple[int, int]]:
    """Join neighbours until at most `most` are left and each holds work: the lightest pair first.

    A pair is as heavy as its nodes that work: what counts for a choice is how many of those it
    binds together, not how large they are, so each counts alike.
    """
    spans, heavy = _without_idle(pieces, [sum(work[i] > 0 for i in range(a, b)) for a, b in pieces])
    while len(spans) > most:
        i = min(range(len(spans) - 1), key=lambda i: (heavy[i] + heavy[i + 1], i))
        spans[i : i + 2] = [(spans[i][0], spans[i + 1][1])]
        heavy[i : i + 2] = [heavy[i] + heavy[i + 1]]
    return spans


def _without_idle(
    pieces: Sequence[tuple[int, int]], heavy: Sequence[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Join what holds no work to its lighter neighbour, the earlier of two that are alike."""
    busy = [i for i, weight in enumerate(heavy) if weight]
    if not busy:
        return [], []
    starts = [pieces[0][0]]
    for left, right in itertools.pairwise(busy):
        # What lies idle between the two goes to one of them as a whole.
        starts.append(pieces[left + 1 if heavy[right] < heavy[left] else right][0])
    spans = list(itertools.pairwise([*starts, pieces[-1][1]]))
    return spans, [heavy[i] for i in busy]
