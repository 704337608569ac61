"""Interface: what goes into a model and comes out, with shapes and constants that a caller fixes.

A declared shape is a claim. Where the caller, or the data, says another, it is overwritten and
everything that was recorded behind it is forgotten, so that nothing stale survives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekit.errors import ModelError, UsageError
from edgekit.manifest import Datatype, TensorSpec
from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.normal.graphs import graphs_in
from edgekit_runtime.engines.batches import SampleArrays

Shapes = Mapping[str, Sequence[int]]
Constants = Mapping[str, Any]
"""Values by input: numbers, booleans, or nested lists of them."""

_DATATYPES: Mapping[int, Datatype] = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.STRING: "BYTES",
}
_FIRST_IR_WITHOUT_DEFAULTS = 4


def parse_constant(text: str) -> tuple[str, Any]:
    """`sr=16000` or `mask=[1,0]`: the name of an input and its value, as JSON has it."""
    name, _, value = text.partition("=")
    try:
        parsed = msgspec.json.decode(value.encode())
    except msgspec.DecodeError:
        parsed = None
    if not name or not isinstance(parsed, (int, float, list)):
        raise UsageError(f"--fix: {text!r} is not NAME=VALUE, such as sr=16000")
    return name, parsed


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, datatype and shape of a graph's input or output; sizes that are not fixed are -1."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in _DATATYPES:
        raise ModelError(
            f"{value.name!r} is a {type_name(value.type)}, not a tensor of a type that can be"
            " served",
            hint="sequences, maps and optional values must be taken out of the model's interface",
        )
    if not kind.HasField("shape"):
        raise ModelError(
            f"the shape of {value.name!r} is not known, not even its rank",
            hint="fix the sizes of the model's inputs with --input NAME=1x3x224x224",
        )
    shape = tuple(dim.dim_value if dim.dim_value > 0 else -1 for dim in kind.shape.dim)
    return TensorSpec(name=value.name, datatype=_DATATYPES[kind.elem_type], shape=shape)


def type_name(kind: onnx.TypeProto) -> str:
    """A type in words: `sequence of map of int64 to float tensor`."""
    if kind.HasField("sequence_type"):
        return f"sequence of {type_name(kind.sequence_type.elem_type)}"
    if kind.HasField("optional_type"):
        return f"optional {type_name(kind.optional_type.elem_type)}"
    if kind.HasField("map_type"):
        key = _element_name(kind.map_type.key_type)
        return f"map of {key} to {type_name(kind.map_type.value_type)}"
    if kind.HasField("sparse_tensor_type"):
        return f"sparse {_element_name(kind.sparse_tensor_type.elem_type)} tensor"
    return f"{_element_name(kind.tensor_type.elem_type)} tensor"


def require_tensors(model: onnx.ModelProto) -> None:
    """Raise `ModelError` for the first input or output that is no tensor, with its node."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if value.type.WhichOneof("value") in (None, "tensor_type"):
                continue
            maker = makers.get(value.name)
            made = f", made by {maker.op_type} {maker.name!r}" if maker is not None else ""
            zipped = maker is not None and maker.op_type == "ZipMap"
            raise ModelError(
                f"{what} {value.name!r} is a {type_name(value.type)}{made}; only tensors can be"
                " served",
                hint="export the estimator with options={'zipmap': False}"
                if zipped
                else f"export the model with tensors in place of this {what}",
            )


def require_no_texts(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raise `ModelError` for the first input or output of texts."""
    for what, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if spec.datatype == "BYTES":
                raise ModelError(
                    f"{what} {spec.name!r} holds texts, and samples and golden answers are numbers",
                    hint="export the model with numbers there, such as positions of classes, and"
                    " keep the texts beside it",
                )


def drop_initialised_inputs(model: onnx.ModelProto) -> None:
    """Make every initialiser a constant: a default that a caller may replace is none."""
    initialised = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in initialised]
    if not kept:
        raise ModelError("the model has no inputs: everything in it is constant")
    del model.graph.input[:]
    model.graph.input.extend(kept)
    # Older files must list initialisers among their inputs, which is what is undone here.
    model.ir_version = max(model.ir_version, _FIRST_IR_WITHOUT_DEFAULTS)


def fix_shapes(model: onnx.ModelProto, shapes: Shapes) -> None:
    """Overwrite declared input shapes; -1 leaves an axis to the caller.

    Raises:
        UsageError: a name is no input of the model, or its shape has another rank.
    """
    changed = False
    for name, sizes in shapes.items():
        value = _input(model, name, option="--input")
        shape = value.type.tensor_type.shape
        if value.type.tensor_type.HasField("shape") and len(shape.dim) != len(sizes):
            raise UsageError(
                f"--input: {name!r} has {len(shape.dim)} axes, {len(sizes)} sizes were given"
            )
        declared = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in shape.dim]
        if value.type.tensor_type.HasField("shape") and declared == list(sizes):
            continue
        changed = True
        shape.SetInParent()  # a scalar's shape is empty, and still a shape
        del shape.dim[:]
        for axis, size in enumerate(sizes):
            dim = shape.dim.add()
            if size > 0:
                dim.dim_value = size
            else:
                dim.dim_param = f"{name}_{axis}"
    if changed:
        _forget_shapes(model)


def fix_constants(model: onnx.ModelProto, values: Constants) -> None:
    """Replace inputs by initialisers of the same name, so that what depends on them can be folded.

    Raises:
        UsageError: a name is no input of the model, its value does not fit the input's datatype
            or shape, or no input would be left.
    """
    for name, given in values.items():
        value = _input(model, name, option="--fix")
        model.graph.initializer.append(_constant(value, given))
        model.graph.input.remove(value)
    if values and not model.graph.input:
        raise UsageError(
            "--fix: no input would be left", hint="leave out the inputs that carry samples"
        )


def shapes_from(arrays: SampleArrays, inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Shapes to give as `shapes`, for inputs whose declared shape the samples contradict.

    An input that fits its samples, or leaves the sizes to the caller, is not among them. Samples
    have the rank of the input, axis 0 counting them, and stand in place of its first axis; the
    proposal is then one sample. Samples of another rank propose nothing: they are wrong, not the
    model. So are samples that lack a dynamic axis behind the first, the batch of a recurrent model.

    Args:
        arrays: samples by input.
        inputs: as the model declares them.
    """
    proposed = {}
    for spec in inputs:
        array = arrays.get(spec.name)
        if array is None or array.ndim != len(spec.shape) or array.ndim < 2:
            continue
        sample = (1, *array.shape[1:])
        if any(
            size == -1 and axis and (*spec.shape[:axis], *spec.shape[axis + 1 :]) == sample[1:]
            for axis, size in enumerate(spec.shape)
        ):
            continue
        if not all(d in (-1, size) for d, size in zip(spec.shape, sample, strict=True)):
            proposed[spec.name] = sample
    return proposed


def check_reshapes(model: onnx.ModelProto, shapes: Shapes) -> None:
    """Raise `ModelError` for the first Reshape whose constant target fits only the old shape.

    Args:
        model: with shapes inferred from those that were fixed.
        shapes: what was fixed, for the message.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {value.name: value.type.tensor_type.shape for value in model.graph.value_info}
    known |= {value.name: value.type.tensor_type.shape for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.domain or node.input[1] not in constants:
            continue
        shape = known.get(node.input[0])
        if attributes_of(node).get("allowzero", 0):
            continue  # a target of 0 then is a size, and such tensors are empty
        if shape is None or not all(dim.HasField("dim_value") for dim in shape.dim):
            continue
        sizes = [dim.dim_value for dim in shape.dim]
        target = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if not _can_reshape(sizes, target):
            given = ", ".join(f"{name}={'x'.join(map(str, s))}" for name, s in shapes.items())
            raise ModelError(
                f"--input {given}: Reshape {node.name!r} turns {node.input[0]!r} into the constant"
                f" shape {target}, which does not hold the {prod(sizes)} values of {sizes}",
                hint="this model runs only in the shape it was exported with; export it again"
                " with dynamic axes",
            )


def _can_reshape(sizes: Sequence[int], target: Sequence[int]) -> bool:
    if any(size == 0 and axis >= len(sizes) for axis, size in enumerate(target)):
        return False
    wanted = [sizes[axis] if size == 0 else size for axis, size in enumerate(target)]
    fixed = prod(size for size in wanted if size != -1)
    if -1 not in wanted:
        return fixed == prod(sizes)
    return fixed > 0 and prod(sizes) % fixed == 0


def _input(model: onnx.ModelProto, name: str, *, option: str) -> onnx.ValueInfoProto:
    inputs: dict[str, onnx.ValueInfoProto] = {v.name: v for v in model.graph.input}
    if name not in inputs:
        raise UsageError(
            f"{option}: the model has no input {name!r}",
            hint=f"its inputs are {', '.join(inputs)}",
        )
    return inputs[name]


def _constant(value: onnx.ValueInfoProto, given: Any) -> onnx.TensorProto:
    spec = spec_of(value)
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    try:
        array = np.asarray(given)
    except ValueError as e:  # rows of different lengths
        raise UsageError(f"--fix: the value of {spec.name!r} is no tensor: {e}") from e
    kind = array.dtype.kind
    allowed = {"b": "biu", "u": "biu", "i": "biu", "f": "biuf"}.get(dtype.kind, "")
    lossless = kind in allowed and np.array_equal(array.astype(dtype).astype(array.dtype), array)
    if kind not in allowed or (dtype.kind in "biu" and not lossless):
        raise UsageError(f"--fix: {spec.name!r} is {spec.datatype}, {given!r} is not")
    if array.ndim == 0 and all(size in (-1, 1) for size in spec.shape):
        array = array.reshape([1] * len(spec.shape))
    if array.ndim != len(spec.shape) or not all(
        declared in (-1, size) for declared, size in zip(spec.shape, array.shape, strict=True)
    ):
        raise UsageError(
            f"--fix: {spec.name!r} has the shape {list(spec.shape)}, the value has"
            f" {list(array.shape)}"
        )
    return numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype)), spec.name)


def _forget_shapes(model: onnx.ModelProto) -> None:
    """Shapes that were recorded behind the inputs belong to the old sizes."""
    for graph in graphs_in(model.graph):
        del graph.value_info[:]
        for value in graph.output:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


def _element_name(element: int) -> str:
    return str(onnx.TensorProto.DataType.Name(element)).lower()
