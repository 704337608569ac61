"""MACs of a TFLite operator, from the shapes of what it reads and makes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

Shape = Sequence[int]

MULTIPLYING = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"}
)


def macs_of(operator: str, reads: Sequence[Shape], makes: Sequence[Shape]) -> int:
    """MACs of one operator; 0 of those that multiply nothing worth counting.

    Args:
        operator: its type, as the schema names it.
        reads, makes: shapes of its inputs and outputs in its order; empty for one left out.

    Raises:
        IndexError: a tensor is left out, or has another rank than the operator's.
    """
    if operator not in MULTIPLYING:
        return 0
    output, weights = makes[0], reads[1]
    if operator == "CONV_2D":
        return prod(output) * weights[1] * weights[2] * weights[3]
    if operator == "DEPTHWISE_CONV_2D":
        return prod(output) * weights[1] * weights[2]
    if operator == "TRANSPOSE_CONV":
        return prod(reads[2]) * weights[0] * weights[1] * weights[2]
    if operator == "FULLY_CONNECTED":
        return prod(output) * weights[-1]
    # The inner size of a product of matrices, whichever factor is transposed.
    return prod(output) * (prod(reads[0][-2:]) // output[-2])
