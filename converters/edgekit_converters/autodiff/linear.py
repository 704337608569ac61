"""Gradients of matrix products.

A product of two matrices becomes one `Gemm` per gradient, which transposes while it multiplies; a
stack of rows times one matrix, the usual dense layer, is folded to that form for the weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit_converters.autodiff.graph import Dimension, Graph
from edgekit_converters.autodiff.rule import Call, Rule


def _gemm(call: Call) -> dict[int, str]:
    graph, g = call.graph, call.gradient
    a, b = call.node.input[:2]
    alpha = call.attributes.get("alpha", 1.0)
    trans_a, trans_b = call.attributes.get("transA", 0), call.attributes.get("transB", 0)
    if trans_a:
        by_a = graph.add("Gemm", [b, g], transA=trans_b, transB=1, alpha=alpha)
    else:
        by_a = graph.add("Gemm", [g, b], transB=1 - trans_b, alpha=alpha)
    if trans_b:
        by_b = graph.add("Gemm", [g, a], transA=1, transB=trans_a, alpha=alpha)
    else:
        by_b = graph.add("Gemm", [a, g], transA=1 - trans_a, alpha=alpha)
    gradients = {0: by_a, 1: by_b}
    if call.input(2) is not None:
        beta = call.attributes.get("beta", 1.0)
        scaled = g if beta == 1.0 else graph.add("Mul", [g, graph.scalar(beta, like=a)])
        gradients[2] = call.sum_to(scaled, 2)
    return gradients


def _matmul(call: Call) -> dict[int, str]:
    graph, g = call.graph, call.gradient
    a, b = call.node.input
    shape_a, shape_b = graph.dimensions(a), graph.dimensions(b)
    if len(shape_a) == len(shape_b) == 2:
        by_a = graph.add("Gemm", [g, b], transB=1)
        return {0: by_a, 1: graph.add("Gemm", [a, g], transA=1)}
    rows, columns = shape_b[0], shape_b[-1]
    if len(shape_b) == 2 and isinstance(rows, int) and isinstance(columns, int):
        flat_a = graph.add("Reshape", [a, graph.integers([-1, rows])])
        flat_g = graph.add("Reshape", [g, graph.integers([-1, columns])])
        by_a = graph.add("MatMul", [g, graph.add("Transpose", [b], perm=[1, 0])])
        return {0: by_a, 1: graph.add("Gemm", [flat_a, flat_g], transA=1)}
    return _batched(call, shape_a, shape_b)


def _batched(
    call: Call, shape_a: tuple[Dimension, ...], shape_b: tuple[Dimension, ...]
) -> dict[int, str]:
    """Treat a vector as a matrix with one row or column, as numpy.matmul does."""
    graph, g = call.graph, call.gradient
    a, b = call.node.input
    batch = graph.dimensions(call.output)
    if len(shape_a) > 1:
        batch = batch[:-1]
    if len(shape_b) > 1:
        batch = batch[:-1]
    if len(shape_b) == 1:
        b = graph.add("Unsqueeze", [b, graph.integers([1])])
        g = graph.add("Unsqueeze", [g, graph.integers([-1])])
        shape_b = (*shape_b, 1)
    if len(shape_a) == 1:
        a = graph.add("Unsqueeze", [a, graph.integers([0])])
        g = graph.add("Unsqueeze", [g, graph.integers([-2])])
        shape_a = (1, *shape_a)
    by_a = graph.add("MatMul", [g, _swap(graph, b, len(shape_b))])
    by_b = graph.add("MatMul", [_swap(graph, a, len(shape_a)), g])
    wide_b = (*batch, *shape_b[-2:])
    if call.node.input[1] != b:
        by_b = graph.add("Squeeze", [by_b, graph.integers([-1])])
        wide_b = wide_b[:-1]
    return {
        0: call.graph.sum_to(by_a, of=(*batch, *shape_a[-2:]), to=call.node.input[0]),
        1: call.graph.sum_to(by_b, of=wide_b, to=call.node.input[1]),
    }


def _swap(graph: Graph, name: str, rank: int) -> str:
    """Transpose the last two axes."""
    axes = [*range(rank - 2), rank - 1, rank - 2]
    return graph.add("Transpose", [name], perm=axes)


LINEAR: Mapping[str, Rule] = {"Gemm": _gemm, "MatMul": _matmul}
