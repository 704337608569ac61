"""Request: the JSON of an inference request, as clients of Open Inference Protocol v2 write it.

Only what these fields hold by themselves is checked here; whether it fits a model is checked by
`offer`. Clients may add fields and parameters, which are ignored.
"""

from __future__ import annotations

import msgspec

from edgekit_runtime.serving.job import LOWEST_PRIORITY

MAX_TIMEOUT_US = 3_600_000_000


class InputParameters(msgspec.Struct, frozen=True):
    """Where the data of an input is."""

    binary_data_size: int | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: int = 0
    shared_memory_byte_size: int | None = None


class Input(msgspec.Struct, frozen=True):
    """An input as it was sent."""

    name: str
    datatype: str
    shape: list[int]
    parameters: InputParameters = InputParameters()
    data: msgspec.Raw = msgspec.Raw()


class OutputParameters(msgspec.Struct, frozen=True):
    """How and where an output is wanted."""

    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None
    shared_memory_offset: int = 0
    shared_memory_byte_size: int | None = None


class Output(msgspec.Struct, frozen=True):
    """An output as it was asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class Parameters(msgspec.Struct, frozen=True):
    """How a request is to be treated."""

    binary_data_output: bool = False
    timeout: int | None = None
    priority: int = 0
    variant: str | None = None
    cascade: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 <= self.timeout <= MAX_TIMEOUT_US:
            raise ValueError(f"timeout must be 0 to {MAX_TIMEOUT_US} microseconds")
        if not 0 <= self.priority <= LOWEST_PRIORITY:
            raise ValueError(f"priority must be 1, the highest, to {LOWEST_PRIORITY}, or 0")
        if self.cascade is not None and not 0 <= self.cascade <= 1:
            raise ValueError("cascade must be a confidence from 0 to 1")


class Request(msgspec.Struct, frozen=True):
    """An inference request as it was sent."""

    inputs: list[Input]
    id: str = ""
    parameters: Parameters = Parameters()
    outputs: list[Output] = []
