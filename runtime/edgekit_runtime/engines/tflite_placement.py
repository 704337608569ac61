"""Where a LiteRT interpreter runs its operators: on external delegates, or on the CPU.

A delegate's kernel stands behind the file's own operators, with the tensors that it reads and
makes; what lies between these is what it took. The library's own CPU delegate (XNNPACK) comes to
the interpreter at its first allocation, so one that was not allocated yet shows external ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit_runtime.engines.placed import Node, Placed, of_nodes
from edgekit_runtime.engines.tflite_macs import macs_of

_KERNEL = "DELEGATE"
_SOURCE = "the operators that delegates took, as the interpreter lists them"

Operator = Mapping[str, Any]


def placed_by_delegates(interpreter: Any) -> Placed | None:
    """The placement of an interpreter before its first allocation.

    The library lists operators by a private method; None where it has none.
    """
    listed = getattr(interpreter, "_get_ops_details", None)
    if listed is None:
        return None
    shapes = {
        int(detail["index"]): tuple(map(int, detail["shape"]))
        for detail in interpreter.get_tensor_details()
    }
    found: Sequence[Operator] = listed()
    own = [operator for operator in found if operator["op_name"] != _KERNEL]
    kernels = [operator for operator in found if operator["op_name"] == _KERNEL]
    taken = taken_by(own, kernels)
    nodes = [
        Node(
            operator=operator["op_name"],
            accelerated=number in taken,
            macs=_macs(operator, shapes),
        )
        for number, operator in enumerate(own)
    ]
    return of_nodes(nodes, source=_SOURCE)


def taken_by(own: Sequence[Operator], kernels: Sequence[Operator]) -> set[int]:
    """Positions of the file's operators that lie between what kernels read and make.

    Args:
        own: the file's operators, each with `inputs` and `outputs`, numbers of tensors.
        kernels: those of delegates, likewise.
    """
    maker = {int(made): number for number, step in enumerate(own) for made in step["outputs"]}
    taken: set[int] = set()
    for kernel in kernels:
        given = set(map(int, kernel["inputs"]))
        wanted = list(map(int, kernel["outputs"]))
        while wanted:
            number = maker.get(wanted.pop())
            if number is not None and number not in taken:
                taken.add(number)
                wanted += [read for read in map(int, own[number]["inputs"]) if read not in given]
    return taken


def _macs(operator: Operator, shapes: Mapping[int, tuple[int, ...]]) -> int | None:
    reads = [shapes.get(int(number), ()) for number in operator["inputs"]]
    makes = [shapes.get(int(number), ()) for number in operator["outputs"]]
    name = operator["op_name"]
    # What a compiler put into an operator of its own is not told.
    if not name.replace("_", "").isalnum() or name != name.upper():
        return None
    try:
        return macs_of(name, reads, makes)
    except IndexError:
        return None
