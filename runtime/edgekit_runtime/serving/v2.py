"""Open Inference Protocol v2: an inference request to arrays, and outputs to an answer.

Binary tensors become views of the received bytes and are never copied, unless they lie at an
address that their datatype may not have. Everything is checked here, so that past this module the
code trusts its arrays; messages name the tensor.

Source: KServe Open Inference Protocol v2 (REST), with Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.tensors import DTYPES, fits
from edgekit_runtime.serving import data
from edgekit_runtime.serving.memo import Memo

Arrays = dict[str, NDArray[Any]]

MAX_TIMEOUT_US = 3_600_000_000


class Slot(msgspec.Struct, frozen=True):
    """Where a binary input lies, relative to the end of the JSON."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class Wanted(msgspec.Struct, frozen=True):
    """An output that the caller asked for."""

    name: str
    binary: bool


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a request, checked against a model.

    Attributes:
        values: inputs whose data stood in the JSON.
        slots: inputs that follow as binary data, `binary_bytes` in all.
        rows: samples on axis 0 of every input, 0 where they differ or an input has no axes.
        shapes: of all inputs without axis 0, equal for requests that may run together.
    """

    id: str
    values: Mapping[str, NDArray[Any]]
    slots: tuple[Slot, ...]
    binary_bytes: int
    outputs: tuple[Wanted, ...]
    timeout_us: int | None
    variant: str | None
    rows: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


class Prepared:
    """A form, and the beginnings of answers to it, by the shapes of its outputs.

    Attributes:
        is_plain: all tensors are binary and there is no id, so that the same JSON comes again and
            its answers differ only in their data.
    """

    __slots__ = ("answers", "form", "is_plain")

    def __init__(self, form: Form, *, is_plain: bool) -> None:
        self.form = form
        self.is_plain = is_plain
        self.answers: Memo[tuple[bytes, bytes]] = Memo()


def prepare(raw: bytes, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Prepared:
    """Read and check the JSON of an inference request, raising `RequestError`."""
    form = read_form(raw, inputs=inputs, outputs=outputs)
    texts = any(spec.datatype == "BYTES" for spec in (*inputs, *outputs))
    is_binary = not form.values and all(wanted.binary for wanted in form.outputs)
    return Prepared(form, is_plain=is_binary and not form.id and not texts)


def read_form(raw: bytes, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Form:
    """Read and check the JSON of an inference request, raising `RequestError`."""
    try:
        request = msgspec.json.decode(raw, type=_Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"the request is not valid: {e}") from e
    specs = {spec.name: spec for spec in inputs}
    values: Arrays = {}
    slots: list[Slot] = []
    shapes: dict[str, tuple[int, ...]] = {}
    offset = 0
    for tensor in request.inputs:
        if tensor.name not in specs:
            raise RequestError(f"there is no input {tensor.name!r}; inputs are {', '.join(specs)}")
        if tensor.name in shapes:
            raise RequestError(f"input {tensor.name!r} is given twice")
        spec = specs[tensor.name]
        shape = shapes[tensor.name] = _shape(tensor, spec)
        size = tensor.parameters.binary_data_size
        if tensor.parameters.shared_memory_region is not None:
            raise RequestError(f"input {tensor.name!r}: shared memory is not served here")
        if size is None:
            if not bytes(tensor.data):
                raise RequestError(f"input {tensor.name!r} has no data")
            values[tensor.name] = data.from_json(tensor.data, spec, shape)
            continue
        if bytes(tensor.data):
            raise RequestError(f"input {tensor.name!r} has both data and binary_data_size")
        slots.append(_slot(spec, shape, offset=offset, size_bytes=size))
        offset += size
    if missing := [name for name in specs if name not in shapes]:
        raise RequestError(f"input {missing[0]!r} is missing")
    counts = {shape[0] if shape else 0 for shape in shapes.values()}
    return Form(
        id=request.id,
        values=values,
        slots=tuple(slots),
        binary_bytes=offset,
        outputs=_outputs(request, [spec.name for spec in outputs]),
        timeout_us=request.parameters.timeout or None,
        variant=request.parameters.variant,
        rows=counts.pop() if len(counts) == 1 else 0,
        shapes=tuple((name, shape[1:]) for name, shape in sorted(shapes.items())),
    )


def read_arrays(form: Form, binary: bytes | memoryview, *, offset: int, size_bytes: int) -> Arrays:
    """The inputs of a request.

    Args:
        form: its JSON, checked.
        binary: holds the binary tensors; they are not copied.
        offset: where in `binary` the first of them begins.
        size_bytes: how many bytes came after the JSON.
    """
    if size_bytes != form.binary_bytes:
        raise RequestError(
            f"{size_bytes} bytes follow the JSON, its inputs' binary_data_size add up to"
            f" {form.binary_bytes}"
        )
    arrays = dict(form.values)
    for slot in form.slots:
        start = offset + slot.offset
        if slot.dtype == object:
            raw = memoryview(binary)[start : start + slot.size_bytes]
            arrays[slot.name] = data.from_strings(raw, slot.shape, name=slot.name)
            continue
        array: NDArray[Any] = np.ndarray(slot.shape, slot.dtype, binary, start)
        arrays[slot.name] = array if array.flags.aligned else array.copy()
    return arrays


def write_outputs(
    form: Form, outputs: Mapping[str, NDArray[Any]], *, specs: Sequence[TensorSpec]
) -> tuple[list[dict[str, Any]], list[bytes | memoryview]]:
    """Outputs as the JSON list of an answer, and the binary chunks that follow it."""
    listed: list[dict[str, Any]] = []
    chunks: list[bytes | memoryview] = []
    datatypes = {spec.name: spec.datatype for spec in specs}
    for wanted in form.outputs:
        array = outputs[wanted.name]
        entry: dict[str, Any] = {
            "name": wanted.name,
            "datatype": datatypes[wanted.name],
            "shape": array.shape,
        }
        if wanted.binary:
            chunk = data.to_binary(array)
            chunks.append(chunk)
            entry["parameters"] = {"binary_data_size": len(chunk)}
        else:
            entry["data"] = data.to_json(array, name=wanted.name)
        listed.append(entry)
    return listed, chunks


def _shape(tensor: _Input, spec: TensorSpec) -> tuple[int, ...]:
    if tensor.datatype != spec.datatype:
        raise RequestError(
            f"input {tensor.name!r} must be {spec.datatype}, it is {tensor.datatype}"
        )
    shape = tuple(tensor.shape)
    if any(size < 1 for size in shape) or not fits(shape, spec):
        raise RequestError(
            f"input {tensor.name!r} must have shape {list(spec.shape)}, it has {list(shape)}"
        )
    return shape


def _slot(spec: TensorSpec, shape: tuple[int, ...], *, offset: int, size_bytes: int) -> Slot:
    dtype = DTYPES[spec.datatype]
    # A Python integer cannot overflow, whatever the shape claims.
    wanted = math.prod(shape) * dtype.itemsize
    if spec.datatype != "BYTES" and size_bytes != wanted:
        raise RequestError(
            f"input {spec.name!r} has {size_bytes} bytes, shape {list(shape)} of {spec.datatype}"
            f" takes {wanted}"
        )
    return Slot(spec.name, dtype, shape, offset, size_bytes)


def _outputs(request: _Request, names: Sequence[str]) -> tuple[Wanted, ...]:
    default = request.parameters.binary_data_output
    if not request.outputs:
        return tuple(Wanted(name, default) for name in names)
    seen: dict[str, Wanted] = {}
    for output in request.outputs:
        if output.name not in names:
            raise RequestError(
                f"there is no output {output.name!r}; outputs are {', '.join(names)}"
            )
        if output.name in seen:
            raise RequestError(f"output {output.name!r} is asked for twice")
        if output.parameters.classification:
            raise RequestError(f"output {output.name!r}: classification is not served here")
        if output.parameters.shared_memory_region is not None:
            raise RequestError(f"output {output.name!r}: shared memory is not served here")
        binary = output.parameters.binary_data
        seen[output.name] = Wanted(output.name, default if binary is None else binary)
    return tuple(seen.values())


# The protocol lets clients add fields and parameters that a server may ignore.


class _InputParameters(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class _Input(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: _InputParameters = _InputParameters()
    data: msgspec.Raw = msgspec.Raw()


class _OutputParameters(msgspec.Struct, frozen=True):
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_output: bool = False
    timeout: int | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 <= self.timeout <= MAX_TIMEOUT_US:
            raise ValueError(f"timeout must be 0 to {MAX_TIMEOUT_US} microseconds")


class _Request(msgspec.Struct, frozen=True):
    inputs: list[_Input]
    id: str = ""
    parameters: _Parameters = _Parameters()
    outputs: list[_Output] = []
