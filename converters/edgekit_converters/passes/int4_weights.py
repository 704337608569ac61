"""Int4 weights: those of matrix products in 4 bits, in blocks; activations stay in float.

Written as `MatMulNBits` of onnxruntime's contributed operators: a weight [k, n] is stored by
column, each column in blocks along k with a scale and, unless symmetric, a zero point of its own;
two values share a byte, the first in its lower half ("ContribOperators.md", com.microsoft
MatMulNBits). The scale of a block is the one of least squared error among some that clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekit.errors import BuildError
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibration
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.edits import (
    MICROSOFT,
    bytes_of,
    checked,
    constants_of,
    copied,
    is_standard,
    kept_label,
    nothing_to_do,
    require_nodes,
    step_options,
    swept,
    use_domain,
)
from edgekit_converters.passes.products import Product, products_of

BlockSize = Literal[16, 32, 64, 128]
Accuracy = Literal[0, 4]

NAME = "int4-weights"
PRECISION = "int4-weights"
_LEAST_INPUTS = 64
_LEAST_BYTES = 1 << 20
_LEAST_SHARE = 0.5
_TOP = 15
_MIDDLE = 8
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
_COLUMNS_AT_ONCE = 256


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass.

    Attributes:
        block_size: values along k that share a scale.
        symmetric: a fixed zero point of 8 rather than one for each block.
        accuracy_level: 4 lets the engine multiply in int8, with activations quantised by block
            while the model runs; 0 multiplies in float.
        keep_float: names of nodes that are left in float.
    """

    block_size: BlockSize = 32
    symmetric: bool = False
    accuracy_level: Accuracy = 4
    keep_float: tuple[str, ...] = ()


class Int4Weights:
    """The pass."""

    kind: Kind = "precision"
    needs_samples = False

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,
        style: Style,
    ) -> tuple[Step, ...]:
        """Large blocks first, which run faster, then small ones, which lose less.

        Only where matrix products of at least 1 MB hold most of the weights; tables of embeddings,
        from which rows are picked, do not count.
        """
        fixed = checked(given, Options, of=NAME)
        if style != "onnxruntime" or PRECISION not in engine.precisions:
            return ()
        constants = constants_of(model.graph)
        tables = {n.input[0] for n in model.graph.node if is_standard(n, "Gather")}
        in_all = sum(bytes_of(t) for name, t in constants.items() if name not in tables)
        names = {product.weight for product in _quantisable(model, fixed)}
        in_products = sum(bytes_of(constants[name]) for name in names)
        if in_products < max(_LEAST_BYTES, _LEAST_SHARE * in_all):
            return ()
        steps = [self.step({"block_size": size, **given}) for size in (128, 32)]
        return tuple({step.label: step for step in steps}.values())

    def step(self, options: Mapping[str, Option]) -> Step:
        parsed = checked(options, Options, of=NAME)
        return Step(
            name=NAME, label=_label(parsed), options=step_options(parsed), precision=PRECISION
        )

    def apply(
        self,
        model: onnx.ModelProto,
        step: Step,
        *,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> onnx.ModelProto:
        options = checked(step.options, Options, of=NAME)
        require_nodes(model, options.keep_float, of=step.label)
        chosen = {product.node.name: product for product in _quantisable(model, options)}
        if not chosen:
            wanted = f"MatMul or Gemm with constant weights of {_LEAST_INPUTS} inputs or more"
            raise nothing_to_do(model, label=step.label, wanted=wanted)
        quantised = copied(model)
        use_domain(quantised, MICROSOFT)
        arrays: dict[str, NDArray[np.generic]] = {}
        constants = constants_of(model.graph)
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if node.name not in chosen:
                nodes.append(node)
                continue
            product = chosen[node.name]
            if f"{product.stem}.int4" not in arrays:
                arrays |= _arrays(product, product.values(constants), options)
            nodes.append(_node(product, constants[product.weight].dims, options))
            nodes += product.add_bias()
        del quantised.graph.node[:]
        quantised.graph.node.extend(nodes)
        quantised.graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in arrays.items()
        )
        return swept(quantised)


def quantised_blocks(
    blocks: NDArray[np.float32], *, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Values 0 to 15, and the scale and zero point of each block of the last axis.

    The value of `codes` is `(codes - zero) * scale`. Of some ranges, from the extremes inwards, the
    one of least squared error is taken.

    Args:
        blocks: [.., size]; those of the result are [.., size], [..] and [..].
    """
    best_error = np.full(blocks.shape[:-1], np.inf, np.float32)
    codes = np.zeros(blocks.shape, np.uint8)
    scales = np.ones(blocks.shape[:-1], np.float32)
    zeros = np.full(blocks.shape[:-1], _MIDDLE, np.uint8)
    for shrink in _SHRINKS:
        scale, zero = _grid(blocks, symmetric=symmetric, shrink=shrink)
        steps = np.rint(blocks / scale[..., np.newaxis]) + zero[..., np.newaxis]
        tried = np.clip(steps, 0, _TOP)
        real = (tried - zero[..., np.newaxis]) * scale[..., np.newaxis]
        error = np.square(real - blocks).sum(axis=-1)
        better = error < best_error
        best_error[better] = error[better]
        codes[better] = tried[better].astype(np.uint8)
        scales[better] = scale[better]
        zeros[better] = zero[better].astype(np.uint8)
    return codes, scales, zeros


def packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two values to a byte along the last axis, the first in the lower half; 0 fills up."""
    odd = codes.shape[-1] % 2
    if odd:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return np.ascontiguousarray(codes[..., 0::2] | (codes[..., 1::2] << 4))


def _quantisable(model: onnx.ModelProto, options: Options) -> list[Product]:
    constants = constants_of(model.graph)
    return [
        product
        for product in products_of(model, except_for=options.keep_float)
        if constants[product.weight].dims[1 if product.transposed else 0] >= _LEAST_INPUTS
    ]


def _grid(
    blocks: NDArray[np.float32], *, symmetric: bool, shrink: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and zero point of each block, for a range that is this share of its extremes."""
    if symmetric:
        position = np.abs(blocks).argmax(axis=-1)[..., np.newaxis]
        # 0 to 15 around 8 reach one step further down: there the largest value, of any sign, goes.
        extreme = np.take_along_axis(blocks, position, axis=-1)[..., 0]
        scale = np.asarray(extreme * np.float32(-shrink / _MIDDLE))
        zero = np.full(scale.shape, _MIDDLE, np.float32)
    else:
        low = np.minimum(blocks.min(axis=-1), 0) * np.float32(shrink)
        high = np.maximum(blocks.max(axis=-1), 0) * np.float32(shrink)
        scale = (high - low) / np.float32(_TOP)
        zero = np.rint(-low / np.where(scale == 0, 1, scale)).astype(np.float32)
    return np.where(scale == 0, 1, scale).astype(np.float32), zero


def _arrays(
    product: Product, weight: NDArray[np.float32], options: Options
) -> dict[str, NDArray[np.generic]]:
    """The inputs of `MatMulNBits` by name, made of a weight [k, n]."""
    if not np.isfinite(weight).all():
        raise BuildError(
            f"weight {product.weight!r} holds a value that is not finite, and cannot be quantised",
            hint="export the model again, from weights that are finite",
        )
    inputs, columns = weight.shape
    size = options.block_size
    count = -(-inputs // size)
    parts = []
    for start in range(0, columns, _COLUMNS_AT_ONCE):
        part = weight[:, start : start + _COLUMNS_AT_ONCE].T
        filled = np.pad(part, ((0, 0), (0, count * size - inputs)))
        parts.append(quantised_blocks(filled.reshape(-1, count, size), symmetric=options.symmetric))
    codes, scales, zeros = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    stem = product.stem
    arrays = {f"{stem}.int4": packed(codes), f"{stem}.scales": scales.reshape(-1)}
    if not options.symmetric:
        arrays[f"{stem}.zero_points"] = packed(zeros).reshape(-1)
    return arrays


def _node(product: Product, shape: Sequence[int], options: Options) -> onnx.NodeProto:
    suffixes = ("int4", "scales") if options.symmetric else ("int4", "scales", "zero_points")
    inputs, columns = shape[::-1] if product.transposed else shape
    return helper.make_node(
        "MatMulNBits",
        [product.source, *(f"{product.stem}.{suffix}" for suffix in suffixes)],
        [product.unbiased],
        f"{product.node.name}.int4",
        domain=MICROSOFT,
        K=inputs,
        N=columns,
        bits=4,
        block_size=options.block_size,
        accuracy_level=options.accuracy_level,
    )


def _label(options: Options) -> str:
    parts = [NAME, f"block-{options.block_size}"]
    if options.symmetric:
        parts.append("symmetric")
    if options.accuracy_level == 0:
        parts.append("float")
    if options.keep_float:
        parts.append(kept_label(options.keep_float))
    return "/".join(parts)


PASS = Int4Weights()
