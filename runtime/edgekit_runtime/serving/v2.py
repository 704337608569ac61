"""Open Inference Protocol v2: an inference request to arrays, and outputs to an answer.

Binary tensors become views of the received bytes and are never copied, unless they lie at an
address that their datatype may not have. Tensors in shared memory are copied once, into the memory
that the engine reads, and out of the memory that it wrote. `offer` checks what a request
says; lengths and regions are checked here, so that past this module the code trusts its arrays.

Source: KServe Open Inference Protocol v2 (REST), with Triton's extensions binary tensor data,
shared memory and classification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.serving import data, offer
from edgekit_runtime.serving.form import Form, Prepared, Shared, Slot, Wanted
from edgekit_runtime.serving.offer import Offer

if TYPE_CHECKING:
    from edgekit_runtime.serving.pictures import Surface
    from edgekit_runtime.serving.shm import Regions

Arrays = dict[str, NDArray[Any]]
Chunks = list[bytes | memoryview]
Allocate = Callable[[int], memoryview | None]


def prepare(
    raw: bytes,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    surface: Surface | None = None,
    labels: Sequence[str] = (),
) -> Prepared:
    """Read and check the JSON of an inference request, raising `RequestError`.

    Args:
        raw: the JSON.
        inputs: of the model.
        outputs: of the model.
        surface: what the model's pipeline takes and gives beside them.
        labels: names of the classes of the model, in their order.
    """
    checked = offer.read(raw, offered(inputs, outputs, surface=surface, labels=labels))
    return Prepared(checked, is_plain=_is_plain(checked))


def offered(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    surface: Surface | None = None,
    labels: Sequence[str] = (),
) -> Offer:
    """What a request may say, to a model and to its pipeline."""
    if surface is None:
        return Offer(inputs, outputs, labels=labels)
    return Offer(inputs, outputs, surface.input, surface.takes, surface.gives, labels)


def read_arrays(
    form: Form,
    binary: bytes | memoryview,
    *,
    offset: int,
    size_bytes: int,
    regions: Regions | None = None,
    allocate: Allocate | None = None,
) -> Arrays:
    """The inputs of a request.

    Args:
        form: its JSON, checked.
        binary: holds the binary tensors; they are not copied.
        offset: where in `binary` the first of them begins.
        size_bytes: how many bytes came after the JSON.
        regions: the shared memory that the caller registered; `None` where it may have none.
        allocate: memory of a size for what is copied; `None`, or its `None`, leaves it to numpy.

    Raises:
        RequestError: bytes are missing or too many, or a region is not what the request says.
    """
    if size_bytes != form.binary_bytes:
        raise RequestError(
            f"{size_bytes} bytes follow the JSON, its inputs' binary_data_size add up to"
            f" {form.binary_bytes}"
        )
    arrays = dict(form.values)
    for slot in form.slots:
        arrays[slot.name] = array(slot, binary, start=offset + slot.offset)
    if form.shared:
        known = _need(regions)
        known.check_total(form.shared_bytes)
        for shared in form.shared:
            arrays[shared.name] = _fetch(shared, known, allocate)
    return arrays


def array(slot: Slot, binary: bytes | memoryview, *, start: int) -> NDArray[Any]:
    """A binary tensor that begins at `start`: a view, unless it must be a copy."""
    if slot.dtype == object:
        raw = memoryview(binary)[start : start + slot.size_bytes]
        return data.from_strings(raw, slot.shape, name=slot.name)
    found: NDArray[Any] = np.ndarray(slot.shape, slot.dtype, binary, start)
    return found if found.flags.aligned else found.copy()


def write_outputs(
    form: Form, outputs: Mapping[str, NDArray[Any]], *, regions: Regions | None = None
) -> tuple[list[dict[str, Any]], Chunks]:
    """Outputs as the JSON list of an answer, and the binary chunks that follow it.

    An output that the request wants in shared memory is put there. Raises `RequestError` where
    JSON cannot carry one, or its region does not take it.
    """
    listed: list[dict[str, Any]] = []
    chunks: Chunks = []
    for wanted in form.outputs:
        found = outputs[wanted.name]
        if wanted.classes:
            found = data.classes(found, count=wanted.classes, labels=wanted.labels)
        entry: dict[str, Any] = {
            "name": wanted.name,
            "datatype": wanted.datatype,
            "shape": found.shape,
        }
        if wanted.place is not None:
            # As Triton has it: the C++ client takes parameters for the sign of binary data.
            _put(wanted, found, regions)
        elif wanted.binary:
            chunk = data.to_binary(found)
            chunks.append(chunk)
            entry["parameters"] = {"binary_data_size": len(chunk)}
        else:
            entry["data"] = data.to_json(found, name=wanted.name)
        listed.append(entry)
    return listed, chunks


def write_data(
    form: Form, outputs: Mapping[str, NDArray[Any]], *, regions: Regions | None = None
) -> Chunks:
    """What follows the JSON of the answer to a plain form, whose beginning is known already.

    Outputs in shared memory are put there. Raises `RequestError` where their region does not take
    them.
    """
    chunks: Chunks = []
    for wanted in form.outputs:
        if wanted.place is None:
            chunks.append(data.to_binary(outputs[wanted.name]))
        else:
            _put(wanted, outputs[wanted.name], regions)
    return chunks


def _is_plain(checked: Form) -> bool:
    if checked.id or checked.values or checked.pictures is not None:
        return False
    if any(slot.dtype == object for slot in checked.slots):
        return False
    return all(
        (wanted.binary or wanted.place is not None) and wanted.datatype != "BYTES"
        for wanted in checked.outputs
    )


def _need(regions: Regions | None) -> Regions:
    if regions is None:
        raise RequestError("shared memory is for programs on this machine, by HTTP or gRPC")
    return regions


def _fetch(shared: Shared, regions: Regions, allocate: Allocate | None) -> NDArray[Any]:
    """An input out of shared memory, as a copy that no client can change any more."""
    what = f"input {shared.name!r}"
    if shared.dtype == object:
        raw = memoryview(bytearray(shared.place.size_bytes))
        regions.read(shared.place, raw, what=what)
        return data.from_strings(raw, shared.shape, name=shared.name)
    memory = None if allocate is None else allocate(shared.place.size_bytes)
    found: NDArray[Any] = (
        np.empty(shared.shape, shared.dtype)
        if memory is None
        else np.ndarray(shared.shape, shared.dtype, memory)
    )
    regions.read(shared.place, found.data, what=what)
    return found


def _put(wanted: Wanted, found: NDArray[Any], regions: Regions | None) -> None:
    """Put an output into shared memory."""
    assert wanted.place is not None
    what = f"output {wanted.name!r}"
    _need(regions).write(wanted.place, data.to_binary(found), what=what)
