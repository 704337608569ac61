"""Golden: inputs that a device must reproduce, and how closely.

A device compares its own answers twice: with this variant's answers on the machine that executed it
(`atol`, `rtol`), and with the source model's (`reference_atol`). Kernels of other instruction sets
round differently, so neither can be zero; a wrong or damaged artefact is off by the size of the
answers themselves. All numbers come from measured errors and are rounded up to two digits, so that
they do not depend on the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from typing import Any

from numpy.typing import NDArray

from edgekit import bundle, tensors
from edgekit.manifest import Golden

_FLOAT_SHARE = 1e-3
_FLOAT_RTOL = 1e-3
_INT8_RTOL = 1e-2
_REFERENCE_MARGIN = 1.5

Outputs = Mapping[str, NDArray[Any]]


def entries(inputs: Outputs, reference: Outputs) -> dict[str, bytes]:
    """The entries that every bundle carries: inputs and the source's answers."""
    return {
        bundle.GOLDEN_INPUTS: tensors.encode(inputs),
        bundle.GOLDEN_REFERENCE: tensors.encode(reference),
    }


def entry_of(variant: str) -> str:
    """Where a variant's own answers lie."""
    return f"golden/{variant}.safetensors"


def tolerances(
    *,
    outputs: str | None,
    scale: float,
    largest_error: float,
    quantised: bool,
) -> Golden:
    """How closely a device must reproduce a variant.

    - `reference_atol`: 1.5 times the largest error that was measured against the source, on golden
      and evaluation samples; at least a thousandth of the answers' size.
    - `atol` of a float variant: a thousandth of the answers' size; kernels that add up in another
      order differ by far less.
    - `atol` of a quantised variant: the largest measured error against the source. Another machine
      rounds the same integers differently here and there, which moves an answer by no more than
      quantisation itself moved it.

    Args:
        outputs: entry with the variant's own answers; None where it was not executed.
        scale: root mean square of the source's answers.
        largest_error: largest absolute difference from the source's answers.
        quantised: whether the variant computes in integers.
    """
    floor_ = _FLOAT_SHARE * scale
    reference_atol = round_up(max(_REFERENCE_MARGIN * largest_error, floor_))
    if outputs is None:
        return Golden(reference_atol=reference_atol)
    return Golden(
        outputs=outputs,
        atol=round_up(max(largest_error, floor_)) if quantised else round_up(floor_),
        rtol=_INT8_RTOL if quantised else _FLOAT_RTOL,
        reference_atol=reference_atol,
    )


def round_up(value: float, *, digits: int = 2) -> float:
    """The smallest number with this many decimal digits that is not below `value` (>= 0).

    Digits of `value` beyond the ninth are noise of the arithmetic and do not count.
    """
    context = Context(prec=digits, rounding=ROUND_CEILING)
    return float(context.create_decimal(f"{value:.9g}"))
