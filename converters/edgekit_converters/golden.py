"""Golden: inputs that a device must reproduce, and how closely.

A device compares its own answers twice: with this variant's answers on the machine that executed it
(`atol`, `rtol`), and with the source model's (`reference_atol`). Kernels of other instruction sets
round differently, so neither can be zero. All numbers come from measured errors and are rounded up
to two digits, so that they do not depend on the last bit.

How much right implementations of one quantised artefact differ is measured where it is built: fused
integer kernels against the same file computed node by node, in float between its pairs. On
EfficientNet-Lite0 (logits up to 11, 4 photographs, VNNI) that is .26, four steps of the output's
quantisation, and so `atol` is .53; integer kernels of two instruction sets differ by less, as both
add up exactly and only round between layers. Of 16 artefacts with one weight shifted by an element
or turned around, 12 are off by 1.4 to 15 and refused, and the other 4 answer the same. A bit that
flipped may be too small to see: digests are there for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from typing import Any

from numpy.typing import NDArray

from edgekit import bundle, tensors
from edgekit.manifest import Golden
from edgekit_converters.evaluate import max_abs_error

_FLOAT_SHARE = 1e-3
_FLOAT_RTOL = 1e-3
_INT8_RTOL = 1e-2
_ROUNDING_MARGIN = 2.0
# Four of the 255 steps between the least and the largest answer.
_STEPS_SHARE = 4 / 255
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
    rounding: float | None = None,
) -> Golden:
    """How closely a device must reproduce a variant.

    - `reference_atol`: 1.5 times the largest error that was measured against the source, on golden
      and evaluation samples; at least a thousandth of the answers' size.
    - `atol` of a float variant: a thousandth of the answers' size; kernels that add up in another
      order differ by far less.
    - `atol` of a quantised variant: twice the `rounding` of `rounding_of`.

    Args:
        outputs: entry with the variant's own answers; None where it was not executed.
        scale: root mean square of the source's answers.
        largest_error: largest absolute difference from the source's answers.
        rounding: of a quantised variant, from `rounding_of`; None for a float variant.
    """
    floor_ = _FLOAT_SHARE * scale
    reference_atol = round_up(max(_REFERENCE_MARGIN * largest_error, floor_))
    if outputs is None:
        return Golden(reference_atol=reference_atol)
    return Golden(
        outputs=outputs,
        atol=round_up(own_atol(rounding, scale=scale)),
        rtol=_FLOAT_RTOL if rounding is None else _INT8_RTOL,
        reference_atol=reference_atol,
    )


def own_atol(rounding: float | None, *, scale: float) -> float:
    """How far a right run of a variant may be from another one of the same file.

    Args:
        rounding: of a quantised variant, from `rounding_of`; None for a float variant.
        scale: root mean square of the source's answers.
    """
    return max(_ROUNDING_MARGIN * (rounding or 0.0), _FLOAT_SHARE * scale)


def rounding_of(answers: Outputs, second_opinion: Outputs) -> float:
    """How far apart right implementations of one quantised artefact may be.

    The largest difference between two that were run; at least two steps of an output in 8 bits,
    which few samples may not show.

    Args:
        answers: of the kernels that serve, by output name.
        second_opinion: of the engine's plainest kernels, on the same inputs.
    """
    extents = (max(array.max(), 0.0) - min(array.min(), 0.0) for array in answers.values())
    steps = float(max(extents)) * _STEPS_SHARE / _ROUNDING_MARGIN
    return max(max_abs_error(answers, second_opinion), steps)


def round_up(value: float, *, digits: int = 2) -> float:
    """The smallest number with this many decimal digits that is not below `value` (>= 0).

    Digits of `value` beyond the ninth are noise of the arithmetic and do not count.
    """
    context = Context(prec=digits, rounding=ROUND_CEILING)
    return float(context.create_decimal(f"{value:.9g}"))
