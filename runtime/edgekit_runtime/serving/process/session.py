"""ProcessSession: a model in a child process, as a `Session` with blocking calls.

While a model loads, a thread probes and measures it through this, with the very path that will
serve; then a `ProcessRunner` takes it over. Errors are the engine's own, word for word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines import Tensors
from edgekit_runtime.engines.placed import Placed
from edgekit_runtime.serving.process.calls import Calls, raised
from edgekit_runtime.serving.process.limits import WorkerLimits
from edgekit_runtime.serving.process.memory import pss_bytes
from edgekit_runtime.serving.process.messages import Failed, Open, Opened, encode
from edgekit_runtime.serving.process.worker import Worker


def open_process(
    artifact: Path,
    engine: str,
    options: Mapping[str, Any],
    *,
    name: str,
    limits: WorkerLimits | None = None,
) -> ProcessSession:
    """Open an artefact in a child process of its own.

    Args:
        artifact: the file; it must stay where it is while the session is open.
        engine: its name among `ENGINES`; only the child imports it.
        options: a variant's.
        name: of what is opened, for messages.
        limits: what the child may take.

    Raises:
        EngineNotInstalled: the engine's library is not on this machine.
        EngineError: the file or an option is not right, or no process can be started.
        UsageError: there is no such engine.
        WorkerLost: the child died, hung or grew too large over it.
    """
    try:
        worker = Worker(name=name, limits=limits or WorkerLimits())
    except OSError as e:
        raise EngineError(
            f"{name}: no worker process can be started: {e.strerror or e}",
            hint="close what holds descriptors or memory, or run it on a thread (workers = thread)",
        ) from e
    try:
        question = Open(str(artifact.absolute()), engine, dict(options))
        answer = worker.ask(encode(question), limit_s=worker.limits.open_s)
        if isinstance(answer, Failed):
            raise raised(answer)
        assert isinstance(answer, Opened), answer
    except BaseException:
        worker.end(kill=True)
        raise
    return ProcessSession(worker, answer)


class ProcessSession:
    """An open model in a child process. `open_process` makes it.

    Attributes:
        worker: the child.
        calls: its runs.
    """

    def __init__(self, worker: Worker, opened: Opened) -> None:
        self.worker = worker
        self.calls = Calls(worker.arena)
        self._opened = opened
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._opened.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._opened.outputs

    @property
    def providers(self) -> tuple[str, ...]:
        return self._opened.providers

    @property
    def placement(self) -> Placed | None:
        return self._opened.placement

    @property
    def name(self) -> str:
        """Of what is open, for messages."""
        return self.worker.name

    @property
    def pid(self) -> int:
        """Of the child."""
        return self.worker.pid

    @property
    def memory_bytes(self) -> int | None:
        """What the child holds, shared pages by their share; `None` where it is gone."""
        return pss_bytes(self.worker.pid)

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """As `Session.run`; the outputs' memory is given back when the last view of them is gone.

        Raises:
            EngineError: the engine refused, or the session is closed.
            WorkerLost: the child died, hung or grew too large; the session is of no more use.
            Overloaded: inputs or outputs do not fit into the shared memory.
        """
        if self._closed:
            raise EngineError(f"{self.name}: the session is closed")
        call = self.calls.run([{name: np.asarray(array) for name, array in inputs.items()}])
        packet = next(call)
        try:
            while True:
                answer = self.worker.ask(packet, limit_s=self.worker.limits.open_s)
                packet = call.send(answer)
        except StopIteration as stop:
            outputs: dict[str, NDArray[Any]] = stop.value.outputs
            return outputs

    def close(self) -> None:
        """End the child and give everything back."""
        if not self._closed:
            self._closed = True
            self.worker.end()
            self.calls.close()
