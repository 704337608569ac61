"""Targets: inference requests, as JSON, as binary strings and as gRPC's messages."""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf.message import DecodeError

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.serving import data, offer, v2
from edgekit_runtime.serving.form import Form
from edgekit_runtime.serving.grpc import convert
from edgekit_runtime.serving.grpc import inference_pb2 as pb
from edgekit_runtime.serving.offer import Offer
from tests.fuzz.target import INPUTS, MOST_BYTES, OFFER, OFFERS, Target, attempt


def request(raw: bytes) -> None:
    """Any JSON is a form that fits the model, or a `RequestError`; see `_read`.

    The first byte chooses the model.
    """
    chosen = OFFERS[raw[0] % len(OFFERS)] if raw else OFFER
    form = attempt(lambda: offer.read(raw[1:], chosen), RequestError)
    if isinstance(form, Form):
        _read(form, chosen, bytes(min(form.binary_bytes, MOST_BYTES)))


def _read(form: Form, chosen: Offer, binary: bytes) -> None:
    """Arrays are what the specs say, whatever the request claims of them."""
    specs = {spec.name: spec for spec in chosen.inputs}
    assert form.binary_bytes == sum(slot.size_bytes for slot in form.slots) >= 0
    assert [one.name for one in form.outputs]
    assert form.timeout_us is None or form.timeout_us > 0
    assert form.cascade is None or 0 <= form.cascade <= 1
    arrays = attempt(
        lambda: v2.read_arrays(form, binary, offset=0, size_bytes=len(binary)), RequestError
    )
    if isinstance(arrays, RequestError):
        is_short = len(binary) != form.binary_bytes
        assert is_short or form.shared or "strings" in str(arrays)
        return
    assert set(arrays) == set(specs)
    for name, array in arrays.items():
        spec = specs[name]
        assert array.dtype == DTYPES[spec.datatype]
        assert len(array.shape) == len(spec.shape)
        assert all(
            size >= 1 and wanted in (-1, size)
            for size, wanted in zip(array.shape, spec.shape, strict=True)
        )
        assert array.dtype == object or array.flags.aligned
    firsts = {array.shape[0] if array.shape else 0 for array in arrays.values()}
    assert form.rows == (firsts.pop() if len(firsts) == 1 else 0)


def _tensor(spec: TensorSpec, **more: Any) -> dict[str, Any]:
    shape = [3 if size < 0 else size for size in spec.shape]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape, **more}


def _json_values(spec: TensorSpec) -> list[Any]:
    count = math.prod(3 if size < 0 else size for size in spec.shape)
    one: dict[str, Any] = {"BOOL": True, "BYTES": "text", "FP32": 1.5}
    return [one.get(spec.datatype, 1)] * count


def _requests() -> list[bytes]:
    made: list[tuple[int, Any]] = []
    for number, spec in enumerate(INPUTS, 1):
        size = math.prod(3 if d < 0 else d for d in spec.shape) * (
            4 if spec.datatype == "BYTES" else DTYPES[spec.datatype].itemsize
        )
        raw = {"binary_data_size": size}
        region = {"shared_memory_region": "r", "shared_memory_byte_size": size}
        tensors = [
            _tensor(spec, data=_json_values(spec)),
            _tensor(spec, parameters=raw),
            _tensor(spec, parameters={**region, "shared_memory_offset": 64}),
            _tensor(spec, parameters=raw) | {"shape": [2**62] * len(spec.shape)},
            _tensor(spec, parameters=raw) | {"shape": [-1] * len(spec.shape)},
            _tensor(spec, parameters=raw) | {"datatype": "FP8"},
        ]
        made += [(number, {"inputs": [tensor]}) for tensor in tensors]
    all_binary = [_tensor(spec, parameters={"binary_data_size": 12}) for spec in INPUTS]
    asked = [
        {"name": "y", "parameters": {"classification": 2}},
        {"name": "t", "parameters": {"binary_data": True}},
    ]
    parameters = {"timeout": 5, "priority": 1, "variant": "v", "cascade": 0.5,
                  "binary_data_output": True}  # fmt: skip
    made.append((0, {"id": "1", "inputs": all_binary, "outputs": asked, "parameters": parameters}))
    return [bytes([number]) + json.dumps(tree).encode() for number, tree in made]


WORDS = [
    b'"inputs":[', b'"outputs":[', b'"parameters":{', b'"name":', b'"datatype":', b'"shape":[',
    b'"data":[', b'"binary_data_size":', b'"shared_memory_region":"r"', b'"classification":',
    b'"shared_memory_byte_size":', b'"shared_memory_offset":', b'"binary_data_output":true',
    b'"timeout":', b'"priority":', b'"cascade":', b'"FP32"', b'"UINT64"', b'"BYTES"', b'"BOOL"',
    b'"INT8"', b"[[", b"]]", b"},{", b"null", b"true", b"1e999", b"-1", b"0.5", b"-0", b"NaN",
    b"18446744073709551615", b"18446744073709551616", b"-9223372036854775808", b'"\\ud800"',
    b'"\\u0000"', b"1" * 400,
]  # fmt: skip


def strings(raw: bytes) -> None:
    """Length-prefixed strings are read to the last byte, or refused; and written back alike.

    The first byte says how many there are.
    """
    count, rest = (raw[0], raw[1:]) if raw else (0, b"")
    found = attempt(lambda: data.from_strings(memoryview(rest), (count,), name="s"), RequestError)
    if not isinstance(found, RequestError):
        assert found.shape == (count,)
        assert bytes(data.to_binary(found)) == rest


STRINGS = [
    b"\x01\x03\x00\x00\x00abc",
    b"\x02\x00\x00\x00\x00\x01\x00\x00\x00\xff",
    b"\x01\xff\xff\xff\xffabc",
    b"\x00",
]


def grpc(raw: bytes) -> None:
    """Any message is what HTTP would have brought, or a `RequestError`.

    The first byte chooses the model.
    """
    chosen = OFFERS[raw[0] % len(OFFERS)] if raw else OFFER
    message = attempt(lambda: pb.ModelInferRequest.FromString(raw[1:]), DecodeError)
    if isinstance(message, DecodeError):
        return
    asked = attempt(lambda: convert.asked(message), RequestError)
    if isinstance(asked, RequestError):
        return
    form = attempt(lambda: offer.check(asked.request, chosen, typed=asked.typed), RequestError)
    if isinstance(form, Form):
        _read(form, chosen, asked.binary)


def _grpc() -> list[bytes]:
    made = []
    for number, spec in enumerate(INPUTS, 1):
        tensor = _tensor(spec)
        count = math.prod(tensor["shape"])
        message = pb.ModelInferRequest(model_name="m", id="1")
        message.inputs.add(**tensor)
        message.raw_input_contents.append(bytes(count * max(DTYPES[spec.datatype].itemsize, 4)))
        message.outputs.add(name="y").parameters["classification"].int64_param = 1
        message.parameters["timeout"].int64_param = 5
        message.parameters["cascade"].double_param = 0.5
        made.append(bytes([number]) + message.SerializeToString())
        fields = {"FP32": "fp32_contents", "UINT64": "uint64_contents", "BOOL": "bool_contents",
                  "INT8": "int_contents", "BYTES": "bytes_contents"}  # fmt: skip
        if spec.datatype in fields:
            message = pb.ModelInferRequest(model_name="m")
            typed = message.inputs.add(**tensor).contents
            value: Any = b"a" if spec.datatype == "BYTES" else 1
            getattr(typed, fields[spec.datatype]).extend([value] * count)
            made.append(bytes([number]) + message.SerializeToString())
    return made


TARGETS = {
    "request": Target(request, _requests(), WORDS),
    "strings": Target(strings, STRINGS),
    "grpc": Target(grpc, _grpc()),
}
