"""Minimal TFLite models, by the schema that ai-edge-litert ships."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def relu(
    *,
    shape: Sequence[int],
    signature: Sequence[int] | None = None,
    quantised: tuple[float, int] | None = None,
) -> bytes:
    """y = relu(x), float32; with `quantised` int8 of that scale and zero point.

    Args:
        signature: the shape with -1 where the caller chooses.
    """
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    kind = schema.TensorType.FLOAT32 if quantised is None else schema.TensorType.INT8

    def tensor(name: str) -> Any:
        made = schema.TensorT()
        made.name, made.type, made.buffer, made.shape = name, kind, 0, list(shape)
        if signature is not None:
            made.shapeSignature = list(signature)
        if quantised is not None:
            scale, zero_point = quantised
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
        return made

    operator = schema.OperatorT()
    operator.inputs, operator.outputs, operator.opcodeIndex = [0], [1], 0
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version = 1 if quantised is None else 2
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [tensor("x"), tensor("y")], [operator]
    graph.inputs, graph.outputs = [0], [1]
    model = schema.ModelT()
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes, model.buffers = [code], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
