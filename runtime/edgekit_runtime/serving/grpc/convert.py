"""Convert: gRPC's messages to the requests and pages that HTTP has, and back.

What a request may say is checked where HTTP's is (`form`), so that both protocols refuse the same
things in the same words.

Source: KServe Open Inference Protocol v2 (GRPC), with Triton's extensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message
from numpy.typing import NDArray

from edgekit.errors import RequestError
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.serving.grpc import inference_pb2 as pb
from edgekit_runtime.serving.request import Request

M = TypeVar("M", bound=Message)

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# What a field's values are, which may be wider than the tensor's datatype.
_WIRE: Mapping[str, np.dtype[Any]] = {
    "bool_contents": DTYPES["BOOL"],
    "int_contents": DTYPES["INT32"],
    "int64_contents": DTYPES["INT64"],
    "uint_contents": DTYPES["UINT32"],
    "uint64_contents": DTYPES["UINT64"],
    "fp32_contents": DTYPES["FP32"],
    "fp64_contents": DTYPES["FP64"],
    "bytes_contents": DTYPES["BYTES"],
}


class Asked(msgspec.Struct, frozen=True):
    """An inference request as HTTP would have brought it.

    Attributes:
        request: what its JSON would say.
        typed: tensors that came in `contents`.
        binary: the tensors that came in `raw_input_contents`, one after another.
    """

    request: Request
    typed: Mapping[str, NDArray[Any]]
    binary: bytes


def asked(message: pb.ModelInferRequest) -> Asked:
    """Read an inference request, raising `RequestError` that names the tensor or field."""
    raws = list(message.raw_input_contents)
    inputs: list[dict[str, Any]] = []
    typed: dict[str, NDArray[Any]] = {}
    for tensor in message.inputs:
        given = parameters(tensor.parameters)
        # Of HTTP: here a tensor's raw bytes know their own length.
        given.pop("binary_data_size", None)
        inputs.append(
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": given,
            }
        )
        if tensor.HasField("contents"):
            typed[tensor.name] = _values(tensor)
    _add_sizes(inputs, raws)
    outputs = [
        # Outputs are always raw here.
        {"name": output.name, "parameters": parameters(output.parameters) | {"binary_data": True}}
        for output in message.outputs
    ]
    tree = {
        "id": message.id,
        "inputs": inputs,
        "outputs": outputs,
        "parameters": parameters(message.parameters) | {"binary_data_output": True},
    }
    try:
        request = msgspec.convert(tree, Request)
    except msgspec.ValidationError as e:
        raise RequestError(f"the request is not valid: {e}") from e
    return Asked(request, typed, raws[0] if len(raws) == 1 else b"".join(raws))


def answer(
    facts: Mapping[str, Any],
    outputs: Sequence[Mapping[str, Any]],
    chunks: Sequence[bytes | memoryview],
) -> pb.ModelInferResponse:
    """An answer: what HTTP's says beside its tensors, the list of them, and their bytes.

    A tensor in shared memory has empty bytes here, so that clients can count.
    """
    message = pb.ModelInferResponse(
        model_name=facts["model_name"], model_version=facts["model_version"], id=facts.get("id", "")
    )
    _set(message.parameters, facts.get("parameters", {}))
    rest = iter(chunks)
    for output in outputs:
        tensor = message.outputs.add(
            name=output["name"], datatype=output["datatype"], shape=output["shape"]
        )
        said = dict(output.get("parameters", {}))
        is_raw = said.pop("binary_data_size", None) is not None
        _set(tensor.parameters, said)
        message.raw_output_contents.append(bytes(next(rest)) if is_raw else b"")
    return message


def page(kind: type[M], content: Mapping[str, Any]) -> M:
    """A page as a message; fields that gRPC does not have are left out."""
    message = kind()
    # By way of its JSON, so that tuples and whatever else it is made of are what HTTP shows.
    json_format.Parse(msgspec.json.encode(content), message, ignore_unknown_fields=True)
    return message


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a map of parameters; one whose choice is not set is left out."""
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in given.items())
    return {name: getattr(value, choice) for name, value, choice in chosen if choice}


def _set(message: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, bool):
            message[name].bool_param = value
        elif isinstance(value, int):
            message[name].int64_param = value
        elif isinstance(value, float):
            message[name].double_param = value
        else:
            message[name].string_param = str(value)


def _values(tensor: pb.ModelInferRequest.InferInputTensor) -> NDArray[Any]:
    """The values of a tensor that came typed, as wide as they came."""
    field = _CONTENTS.get(tensor.datatype)
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if field is None or filled not in ([], [field]):
        raise RequestError(
            f"input {tensor.name!r} is {tensor.datatype} and comes in contents.{filled[0]}"
            if filled
            else f"input {tensor.name!r} is {tensor.datatype}, which has no typed contents",
            hint=f"send it in contents.{field}" if field else "send it in raw_input_contents",
        )
    values = getattr(tensor.contents, field)
    found: NDArray[Any] = np.empty(len(values), dtype=_WIRE[field])
    found[:] = values
    return found


def _add_sizes(inputs: Sequence[dict[str, Any]], raws: Sequence[bytes]) -> None:
    """Say of each input that comes raw how many bytes it has."""
    if not raws:
        return
    waiting = [one for one in inputs if "shared_memory_region" not in one["parameters"]]
    if len(waiting) != len(raws):
        raise RequestError(
            f"raw_input_contents has {len(raws)} entries, {len(waiting)} inputs are not in shared"
            " memory"
        )
    for one, raw in zip(waiting, raws, strict=True):
        one["parameters"]["binary_data_size"] = len(raw)
