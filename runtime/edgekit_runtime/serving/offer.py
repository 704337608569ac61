"""Offer: what a request to a model may say. Each request is checked against it, once.

Where a tensor's bytes are is decided here, whether they stand in the JSON, follow it, or lie in
shared memory; the bytes themselves are read by `v2`. Everything is a pure function of the request,
so that the same text gives the same form, and messages name the tensor or the field. Parameters
that are not known here are ignored, as the protocol lets them be.

Decided where the protocol is silent: a dimension is at least 1, because no engine here is asked to
run on nothing; a tensor without dimensions holds one value.

Sources: KServe Open Inference Protocol v2 (REST), and of Triton's extensions of it binary tensor
data, shared memory, classification and schedule policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.tensors import DTYPES, fits
from edgekit_runtime.serving import data
from edgekit_runtime.serving.form import Form, Shared, Slot, Stretch, Wanted
from edgekit_runtime.serving.request import (
    Input,
    InputParameters,
    Output,
    OutputParameters,
    Request,
)


class Offer(msgspec.Struct, frozen=True):
    """What a request to a model may name.

    Attributes:
        inputs: the model's.
        outputs: the model's.
        picture: the input that may come as pictures, in one of the forms `takes`.
        gives: outputs that the pipeline makes of the model's.
        labels: names of the classes, empty where there are none.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    picture: str | None = None
    takes: Sequence[TensorSpec] = ()
    gives: Sequence[TensorSpec] = ()
    labels: Sequence[str] = ()


def read(raw: bytes, offer: Offer) -> Form:
    """Read and check the JSON of an inference request, raising `RequestError`."""
    try:
        request = msgspec.json.decode(raw, type=Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(f"the request is not valid: {e}") from e
    return check(request, offer)


def check(
    request: Request, offer: Offer, *, typed: Mapping[str, NDArray[Any]] | None = None
) -> Form:
    """Check a request against a model, raising `RequestError` that names the tensor.

    Args:
        request: as it was sent.
        offer: what the model takes and gives.
        typed: values of inputs that came neither as JSON nor as raw data (gRPC's contents).
    """
    typed = typed or {}
    specs = {spec.name: spec for spec in offer.inputs}
    values: dict[str, NDArray[Any]] = {}
    slots: list[Slot] = []
    shared: list[Shared] = []
    shapes: dict[str, tuple[int, ...]] = {}
    rows: set[int] = set()
    pictures: str | None = None
    binary_bytes = 0
    for tensor in request.inputs:
        name = tensor.name
        if name not in specs:
            raise RequestError(f"there is no input {name!r}; inputs are {', '.join(specs)}")
        if name in shapes:
            raise RequestError(f"input {name!r} is given twice")
        spec = _spec(tensor, specs[name], offer)
        shape = tuple(tensor.shape)
        if spec is not specs[name]:
            pictures = name
        rows.add(_rows(shape, is_pictures=spec is not specs[name]))
        shapes[name] = shape[1:]
        dtype = DTYPES[spec.datatype]
        parameters = tensor.parameters
        size = parameters.binary_data_size
        _check_one_source(tensor, is_typed=name in typed)
        if (place := _place(parameters, f"input {name!r}")) is not None:
            _check_size(spec, shape, place.size_bytes)
            shared.append(Shared(name, dtype, shape, place))
        elif size is not None:
            _check_size(spec, shape, size)
            slots.append(Slot(name, dtype, shape, binary_bytes, size))
            binary_bytes += size
        elif name in typed:
            values[name] = data.from_values(typed[name], spec, shape)
        else:
            values[name] = data.from_json(tensor.data, spec, shape)
    if missing := [name for name in specs if name not in shapes]:
        raise RequestError(f"input {missing[0]!r} is missing")
    outputs = _outputs(request, offer, pictures=pictures is not None)
    given = {spec.name for spec in offer.gives}
    parameter = request.parameters
    return Form(
        id=request.id,
        values=values,
        slots=tuple(slots),
        binary_bytes=binary_bytes,
        shared=tuple(shared),
        shared_bytes=sum(one.place.size_bytes for one in shared),
        outputs=outputs,
        timeout_us=parameter.timeout or None,
        priority=parameter.priority,
        variant=parameter.variant,
        cascade=parameter.cascade,
        rows=rows.pop() if len(rows) == 1 else 0,
        shapes=tuple(sorted(shapes.items())),
        pictures=pictures,
        finishes=any(wanted.name in given for wanted in outputs),
    )


def _rows(shape: Sequence[int], *, is_pictures: bool) -> int:
    """Samples that a tensor holds; 0 where it has no axis that counts them."""
    if is_pictures and len(shape) == _PICTURE_AXES:
        return 1  # One picture may come without the axis that counts them.
    return shape[0] if shape else 0


_PICTURE_AXES = 3


def _spec(tensor: Input, spec: TensorSpec, offer: Offer) -> TensorSpec:
    """What the tensor is given as: as the model takes it, or as pictures."""
    choices = (spec, *offer.takes) if spec.name == offer.picture else (spec,)
    for choice in choices:
        if tensor.datatype == choice.datatype and _fits(tensor.shape, choice):
            return choice
    alike = [choice for choice in choices if choice.datatype == tensor.datatype]
    if not alike:
        names = " or ".join(dict.fromkeys(choice.datatype for choice in choices))
        raise RequestError(f"input {tensor.name!r} must be {names}, it is {tensor.datatype}")
    wanted = " or ".join(str(list(choice.shape)) for choice in alike)
    raise RequestError(f"input {tensor.name!r} must have shape {wanted}, it has {tensor.shape}")


def _fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    return fits(shape, spec) and min(shape, default=1) >= 1


def _check_one_source(tensor: Input, *, is_typed: bool) -> None:
    """A tensor's data must stand in one place."""
    parameters = tensor.parameters
    has_data = is_typed or len(memoryview(tensor.data)) > 0
    is_binary = parameters.binary_data_size is not None
    is_shared = parameters.shared_memory_region is not None
    if has_data + is_binary + is_shared > 1:
        names = ("data", "binary_data_size", "shared_memory_region")
        found = (has_data, is_binary, is_shared)
        both = " and ".join(name for name, given in zip(names, found, strict=True) if given)
        raise RequestError(f"input {tensor.name!r} has both {both}")
    if not (has_data or is_binary or is_shared) and parameters.shared_memory_byte_size is None:
        raise RequestError(f"input {tensor.name!r} has no data")


def _place(parameters: InputParameters | OutputParameters, what: str) -> Stretch | None:
    """The shared memory that a tensor names; of its three parameters the offset may be left out."""
    region, size = parameters.shared_memory_region, parameters.shared_memory_byte_size
    if region is None and size is None:
        return None
    if region is None or size is None:
        raise RequestError(
            f"{what}: shared_memory_region and shared_memory_byte_size come together"
        )
    return Stretch(region, parameters.shared_memory_offset, size)


def _check_size(spec: TensorSpec, shape: Sequence[int], size_bytes: int) -> None:
    # A Python integer cannot overflow, whatever the shape claims.
    wanted = math.prod(shape) * DTYPES[spec.datatype].itemsize
    if spec.datatype == "BYTES":
        # Each element has its length before it.
        wanted = math.prod(shape) * data.LENGTH_BYTES
        if size_bytes < wanted:
            raise RequestError(
                f"input {spec.name!r} has {size_bytes} bytes, {math.prod(shape)} strings take at"
                f" least {wanted}"
            )
    elif size_bytes != wanted:
        raise RequestError(
            f"input {spec.name!r} has {size_bytes} bytes, shape {list(shape)} of {spec.datatype}"
            f" takes {wanted}"
        )


def _outputs(request: Request, offer: Offer, *, pictures: bool) -> tuple[Wanted, ...]:
    default = request.parameters.binary_data_output
    # The names of the model's own outputs come first, should the pipeline have the same.
    specs = {spec.name: spec for spec in (*offer.gives, *offer.outputs)}
    if not request.outputs:
        usual = offer.gives if pictures and offer.gives else offer.outputs
        return tuple(
            Wanted(spec.name, spec.datatype, _binary(default, spec, asked=False)) for spec in usual
        )
    wanted: dict[str, Wanted] = {}
    for output in request.outputs:
        name = output.name
        if name not in specs:
            raise RequestError(f"there is no output {name!r}; outputs are {', '.join(specs)}")
        if name in wanted:
            raise RequestError(f"output {name!r} is asked for twice")
        wanted[name] = _wanted(output, specs[name], offer, default=default)
    return tuple(wanted.values())


def _wanted(output: Output, spec: TensorSpec, offer: Offer, *, default: bool) -> Wanted:
    parameters = output.parameters
    binary = default if parameters.binary_data is None else parameters.binary_data
    place = _place(parameters, f"output {spec.name!r}")
    classes = parameters.classification
    if classes < 0 or (classes and (place is not None or spec.datatype in ("BYTES", "BOOL"))):
        raise RequestError(
            f"output {spec.name!r}: classification is a count of classes, of an output of numbers"
            " that is not put into shared memory"
        )
    if classes:
        return Wanted(spec.name, "BYTES", binary, None, classes, tuple(offer.labels))
    if place is not None:
        return Wanted(spec.name, spec.datatype, binary=False, place=place)
    return Wanted(spec.name, spec.datatype, _binary(binary, spec, asked=True))


def _binary(binary: bool, spec: TensorSpec, *, asked: bool) -> bool:
    if spec.datatype == "FP16" and not binary:
        how = "with binary_data" if asked else "with binary_data_output"
        raise RequestError(f"output {spec.name!r} is FP16, which JSON does not carry; ask {how}")
    return binary
