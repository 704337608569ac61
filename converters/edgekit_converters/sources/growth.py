"""Growth: what a model makes out of little, refused before anything computes it.

A file of a hundred bytes can ask for a tensor of fifty gigabytes: `ConstantOfShape`, `Expand`,
`Tile` and their like take a size and make it. Constant folding would compute it during a build, an
engine when it runs. What only the values of an input decide cannot be told here.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from edgekit.errors import ModelError
from edgekit_converters.sources.sizes import bodies_of, tensor_bytes, tensors_made

MAX_FOLDED_BYTES = 512 << 20
MAX_TENSOR_BYTES = 2 << 30
MAX_INLINED_NODES = 100_000

_MAX_DEPTH = 100


def require_bounded(model: onnx.ModelProto, what: str) -> None:
    """Refuse a model that would grow beyond what a build can hold.

    Raises:
        ModelError: functions expand beyond `MAX_INLINED_NODES`; constants together beyond
            `MAX_FOLDED_BYTES` and eight times the weights (int8 weights become floats and int64
            ones sizes), or one of them to a size that cannot be told; a tensor beyond
            `MAX_TENSOR_BYTES` for one sample.
    """
    if model.functions:
        _require_few_nodes(model, what)
    try:
        made = list(tensors_made(model))
    except (RuntimeError, ValueError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ModelError(
            f"{what}: the sizes of its tensors cannot be worked out: {reason}",
            hint="export it again, without functions",
        ) from e
    for tensor in made:
        if tensor.size_bytes is None and tensor.constant:
            raise ModelError(
                f"{what}: the constant {tensor.name!r} would be computed to a size that cannot be"
                " told",
                hint="store it as an initialiser, or make it from an input",
            )
        if tensor.size_bytes is not None and tensor.size_bytes > MAX_TENSOR_BYTES:
            raise ModelError(
                f"{what}: the tensor {tensor.name!r} would have {tensor.size_bytes} bytes for one"
                f" sample, at most {MAX_TENSOR_BYTES} are taken",
                hint="fix the input to a smaller shape before the export",
            )
    folded = {tensor.name: tensor.size_bytes or 0 for tensor in made if tensor.constant}
    allowed = MAX_FOLDED_BYTES + 8 * sum(map(tensor_bytes, model.graph.initializer))
    if sum(folded.values()) > allowed:
        largest = max(folded, key=folded.__getitem__)
        raise ModelError(
            f"{what}: its constants would be computed to {sum(folded.values())} bytes, more than"
            f" the {allowed} allowed; the largest is {largest!r} with {folded[largest]}",
            hint="store it as an initialiser, or make it from an input",
        )


def foldable_bytes(model: onnx.ModelProto) -> dict[str, int | None]:
    """What constant folding would compute: the size of each constant that a node makes, by name.

    None stands for a growing operator whose size cannot be told. Values that stay small by the
    nature of their operator, whatever they are, are left out.
    """
    return {made.name: made.size_bytes for made in tensors_made(model) if made.constant}


def _require_few_nodes(model: onnx.ModelProto, what: str) -> None:
    """Bound what functions expand to: each may call the one before it twice."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    expanded: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto], depth: int = 0) -> int:
        if depth > _MAX_DEPTH:
            raise ModelError(
                f"{what}: its functions call each other more than {_MAX_DEPTH} deep",
                hint="export it with fewer nested functions",
            )
        total = 0
        for node in nodes:
            key = node.domain, node.op_type
            if key in bodies and key not in expanded:
                expanded[key] = count(bodies[key], depth + 1)
            total += expanded.get(key, 1)
            total += sum(count(body.node, depth + 1) for body in bodies_of(node))
        return total

    # The checker has refused functions that call each other in a circle.
    if count(model.graph.node) > MAX_INLINED_NODES:
        raise ModelError(
            f"{what}: its functions expand to more than {MAX_INLINED_NODES} nodes",
            hint="export it with fewer nested functions",
        )
