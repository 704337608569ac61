"""Call: an inference request whose answer some protocol takes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from edgekit_runtime.serving.form import Form
from edgekit_runtime.serving.job import Outputs
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.shm import Regions


class Call(ABC):
    """A request whose answer some protocol takes.

    Attributes:
        form: what it says.
        regions: its client's shared memory, where a tensor lies there.
        name: of the model.
        version: of the model; `None` for its highest.
        arrived_ns: when it was received whole, by `time.perf_counter_ns`.
        request_id: what the client calls the request, beside the id within it.
    """

    __slots__ = ("arrived_ns", "form", "name", "regions", "request_id", "version")

    def __init__(
        self,
        form: Form,
        regions: Regions | None,
        name: str,
        version: str | None,
        request_id: str | None = None,
    ) -> None:
        self.form = form
        self.regions = regions
        self.name = name
        self.version = version
        self.request_id = request_id
        self.arrived_ns = time.perf_counter_ns()

    @abstractmethod
    def answer(self, served: Served, rung: Rung, outputs: Outputs) -> None:
        """Send the outputs, raising `EdgekitError`, and sending nothing, where that cannot be."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Send an error."""

    @abstractmethod
    def waits(self, leave: Callable[[], None]) -> None:
        """The answer takes its time; `leave` is to be called should the client go before."""
