"""What the Edge TPU takes of a full-integer `.tflite`, by the compiler's documentation.

The list is that of "TensorFlow models on the Edge TPU" (coral.ai/docs/edgetpu/models-intro), as of
compiler 16.0. Only one part of a graph is compiled: an operator that needs what the CPU computes
runs there too. Reading a file against the list is a pure function; the compiler leaves more to the
CPU where its own limits are met, which are not documented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgekit.structs import Strict
from edgekit_converters.targets import Finding

PARAMETER_BYTES = 8 << 20
"""Memory on the chip; the program takes some of it, and parameters the rest."""

_CPU = "it runs on the CPU beside the TPU"
_INNER = 3
_SOFTMAX_MAX = 16_000
_TYPES = {value: name.lower() for name, value in vars(schema.TensorType).items() if name[0] != "_"}
_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if name[0] != "_"}
_INTEGERS = frozenset({schema.TensorType.INT8, schema.TensorType.UINT8})


class Plan(Strict, frozen=True, kw_only=True):
    """Where the operators of a file would run.

    Attributes:
        fallback: those of the CPU, in running order.
        on_tpu: positions of the others in the graph.
        parameter_bytes: what the TPU's operators hold in constants.
    """

    fallback: tuple[Finding, ...]
    on_tpu: tuple[int, ...]
    parameter_bytes: int

    @property
    def streamed_bytes(self) -> int:
        """Parameters beyond the chip's memory, which are sent to it at every inference."""
        return max(0, self.parameter_bytes - PARAMETER_BYTES)


@dataclass(frozen=True)
class Operator:
    """One operator of a file, with its tensors."""

    name: str
    options: Any
    reads: tuple[Any, ...]
    makes: tuple[Any, ...]
    buffers: list[Any]

    def values(self, position: int) -> NDArray[Any] | None:
        """Values of an input of int32 that is a constant; None of one that is computed."""
        if position >= len(self.reads) or not self.holds(self.reads[position]):
            return None
        return np.frombuffer(bytes(self.buffers[self.reads[position].buffer].data), np.int32)

    def holds(self, tensor: Any) -> int:
        """Bytes of a constant; 0 of a tensor that is computed."""
        data = self.buffers[tensor.buffer].data
        return 0 if data is None else len(data)


Check = Callable[[Operator], str]


def plan(raw: bytes) -> Plan:
    """Where the operators of a file would run; its values lie inside (`tflite.inlined`)."""
    model = schema.ModelT.InitFromPackedBuf(raw, 0)
    if len(model.subgraphs) > 1:
        only = Finding(
            node=_text(model.subgraphs[1].name) or "subgraph 1",
            operator="",
            reason=f"{len(model.subgraphs)} subgraphs, one is compiled",
            instead=_CPU,
        )
        return Plan(fallback=(only,), on_tpu=(), parameter_bytes=0)
    fallback, on_tpu = [], []
    held: dict[int, int] = {}
    away: dict[int, str] = {}
    for number, found in enumerate(model.subgraphs[0].operators):
        operator = _operator(model, found)
        first = next((away[i] for i in found.inputs if i in away), None)
        reason = _reason(operator) or (
            f"it needs what {first} makes, and only one part of the graph is compiled"
            if first
            else ""
        )
        if not reason:
            on_tpu.append(number)
            held |= {tensor.buffer: operator.holds(tensor) for tensor in operator.reads}
            continue
        node = _text(operator.makes[0].name)
        fallback.append(Finding(node=node, operator=operator.name, reason=reason, instead=_CPU))
        away |= dict.fromkeys(map(int, found.outputs), first or node)
    return Plan(fallback=tuple(fallback), on_tpu=tuple(on_tpu), parameter_bytes=sum(held.values()))


def _operator(model: Any, found: Any) -> Operator:
    code = model.operatorCodes[found.opcodeIndex]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    tensors = model.subgraphs[0].tensors
    return Operator(
        name=_NAMES.get(builtin, str(builtin)),
        options=found.builtinOptions,
        reads=tuple(tensors[i] for i in found.inputs if i >= 0),
        makes=tuple(tensors[i] for i in found.outputs),
        buffers=model.buffers,
    )


def _reason(operator: Operator) -> str:
    """Why an operator is not taken; empty where it is."""
    checks = _LIST.get(operator.name)
    if checks is None:
        return "it is not in the compiler's list"
    return next(
        (told for check in (_tensors, *checks) if (told := check(operator))),
        "",
    )


def _tensors(operator: Operator) -> str:
    """Rules for every tensor that is computed: integers, known sizes, three axes."""
    converts = operator.name == "QUANTIZE"
    for tensor in (*operator.reads, *operator.makes):
        name = _text(tensor.name)
        shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
        if operator.holds(tensor):
            continue
        if tensor.type not in _INTEGERS and not converts:
            return f"tensor {name} is {_TYPES[tensor.type]}, it takes int8 or uint8"
        signature = [] if tensor.shapeSignature is None else [int(s) for s in tensor.shapeSignature]
        if any(size < 1 for size in (*shape, *signature)):
            return f"tensor {name} has the dynamic shape {signature or shape}"
        if any(size > 1 for size in shape[:-_INNER]):
            return f"tensor {name} {shape}: only its last {_INNER} axes may be longer than 1"
    return ""


def _plain(operator: Operator) -> str:
    fused = operator.options.fusedActivationFunction
    return "it has an activation function fused into it" if fused else ""


def _one_dilation(operator: Operator) -> str:
    height, width = operator.options.dilationHFactor, operator.options.dilationWFactor
    return f"its dilations {height} and {width} differ" if height != width else ""


def _zero_padding(operator: Operator) -> str:
    constants = [tensor for tensor in operator.reads if operator.holds(tensor)]
    if not constants:
        return ""
    zero = all(not np.any(operator.buffers[tensor.buffer].data) for tensor in constants)
    return "" if zero and len(operator.reads) == 2 else "it joins a constant that is not zero"


def _dense(operator: Operator) -> str:
    if operator.options.weightsFormat:
        return "its weights are not in the default format"
    return _one_axis(operator.makes[0])


def _softmax(operator: Operator) -> str:
    size = prod(int(n) for n in operator.reads[0].shape)
    if size > _SOFTMAX_MAX:
        return f"{size} values, it takes up to {_SOFTMAX_MAX}"
    return _one_axis(operator.reads[0])


def _slope(operator: Operator) -> str:
    return _one_axis(operator.reads[1])


def _one_axis(tensor: Any) -> str:
    shape = [int(size) for size in tensor.shape]
    long = any(size > 1 for size in shape[:-1])
    return f"tensor {_text(tensor.name)} {shape} has more than one axis" if long else ""


def _axes(operator: Operator, *, position: int, depth_of_4: bool = False) -> str:
    """Rules for what works along axes that an input names."""
    shape = [int(size) for size in operator.reads[0].shape]
    axes = operator.values(position)
    if axes is None:
        return "its axes are computed"
    named = {int(axis) % len(shape) for axis in axes}
    if 0 in named and shape[0] > 1:
        return "it works along the batch"
    if depth_of_4 and len(shape) - 1 in named and shape[-1] % 4:
        return f"it reduces {shape[-1]} channels, and takes multiples of 4"
    return ""


def _padding(operator: Operator) -> str:
    sizes = operator.values(1)
    if sizes is None:
        return "its padding is computed"
    return "it pads the batch" if len(operator.reads[0].shape) > _INNER and any(sizes[:2]) else ""


def _packing(operator: Operator) -> str:
    return "it packs the batch" if operator.options.axis == 0 else ""


def _split(operator: Operator) -> str:
    axis = operator.values(0)
    if axis is None:
        return "its axis is computed"
    rank = len(operator.reads[1].shape)
    return "it splits the batch" if int(axis[0]) % rank == 0 else ""


def _strides(operator: Operator) -> str:
    steps = operator.values(3)
    if steps is None or any(step != 1 for step in steps):
        return "its strides are not all 1"
    options = operator.options
    return "it adds or drops axes" if options.ellipsisMask or options.newAxisMask else ""


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name or "")


_REDUCE = partial(_axes, position=1)
_LIST: Mapping[str, tuple[Check, ...]] = {
    **dict.fromkeys(
        (
            *("ADD", "EXPAND_DIMS", "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL"),
            *("QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR"),
            *("RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SPACE_TO_DEPTH", "SQUEEZE", "SUB"),
            *("SQUARED_DIFFERENCE", "TANH", "TRANSPOSE", "TRANSPOSE_CONV"),
            "UNIDIRECTIONAL_SEQUENCE_LSTM",
        ),
        (),
    ),
    "AVERAGE_POOL_2D": (_plain,),
    "CONCATENATION": (_plain, _zero_padding),
    "CONV_2D": (_one_dilation,),
    "DEPTHWISE_CONV_2D": (_one_dilation,),
    "FULLY_CONNECTED": (_dense,),
    "MAX_POOL_2D": (_plain,),
    "MEAN": (partial(_axes, position=1, depth_of_4=True),),
    "PACK": (_packing,),
    "PAD": (_padding,),
    "PRELU": (_slope,),
    "REDUCE_MAX": (_REDUCE,),
    "REDUCE_MIN": (_REDUCE,),
    "SOFTMAX": (_softmax,),
    "SPLIT": (_split,),
    "STRIDED_SLICE": (_strides,),
    "SUM": (_REDUCE,),
}


def reasons(found: Plan) -> Iterator[str]:
    """What the plan leaves to the CPU, and what is sent to the chip each time, for people."""
    for finding in found.fallback:
        yield f"{finding.operator} {finding.node}: {finding.reason}"
    if found.streamed_bytes:
        yield (
            f"{found.parameter_bytes / 1e6:.1f} MB of parameters, the chip holds"
            f" {PARAMETER_BYTES / 1e6:.1f}: the rest is sent at every inference"
        )
