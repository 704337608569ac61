"""Client: opens models on the server, and keeps those open that are asked again."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit_runtime.client.line import Gone
from edgekit_runtime.client.model import Model
from edgekit_runtime.doorbell import Changed, Hello

LOOK_US = 100
MAX_KEPT = 8


class Client:
    """Asks the server at a socket. To be used by one thread at a time.

    Args:
        path: of the socket: `bell` in the server's configuration.
        look_us: how long a request looks for its answer, using its core, before it sleeps. It does
            so while that pays, and never where the program has one core. 0 never looks.
    """

    def __init__(self, path: Path | str, *, look_us: int = LOOK_US) -> None:
        self._path = str(path)
        self._look_us = look_us if len(os.sched_getaffinity(0)) > 1 else 0
        self._opened: list[Model] = []
        self._kept: OrderedDict[bytes, Model] = OrderedDict()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every model."""
        for model in (*self._opened, *self._kept.values()):
            model.close()
        self._opened.clear()
        self._kept.clear()

    def open(
        self,
        name: str,
        *,
        rows: int = 1,
        version: str | None = None,
        variant: str | None = None,
        slots: int = 1,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> Model:
        """Share memory for requests to a model.

        Args:
            name: of the model.
            rows: samples in a request, where the model's axis 0 counts them.
            version: of the model; by default the highest that there is at each request.
            variant: the one that must answer; by default the server chooses.
            slots: requests that may be on their way at a time, at most 16.
            shapes: of inputs with sizes that the caller chooses, and the largest ones of outputs
                with sizes that the model chooses.

        Raises:
            Gone: no server is there.
            AccessDenied: this user may not ask it.
            NotServed: it has no such model.
            Overloaded: it has too many programs already.
            RequestError: the model cannot be asked like this; the message names the tensor.
        """
        hello = Hello(
            model=name,
            version=version,
            variant=variant,
            rows=rows,
            slots=slots,
            shapes=_as_shapes(shapes),
        )
        model = Model(self._path, hello, look_us=self._look_us)
        self._opened = [other for other in self._opened if other.is_open]
        self._opened.append(model)
        return model

    def infer(
        self,
        name: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: str | None = None,
        variant: str | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        timeout_s: float | None = None,
        priority: int = 0,
    ) -> dict[str, NDArray[Any]]:
        """Outputs for these inputs, in arrays of their own.

        Memory is kept for requests of the same shapes, and a model that the server replaced
        meanwhile is opened again. Arguments and errors are those of `open` and `Slot.run`.
        """
        arrays = {key: np.asarray(value) for key, value in inputs.items()}
        given = {key: array.shape for key, array in arrays.items()}
        counts = {shape[0] for shape in given.values() if shape}
        hello = Hello(
            model=name,
            version=version,
            variant=variant,
            rows=counts.pop() if len(counts) == 1 else 1,
            shapes={**given, **_as_shapes(shapes)},
        )
        try:
            return self._infer(hello, arrays, timeout_s=timeout_s, priority=priority)
        except (Changed, Gone):
            # It was open since before the server had another version, or was started again.
            if (stale := self._kept.pop(_key(hello), None)) is not None:
                stale.close()
            return self._infer(hello, arrays, timeout_s=timeout_s, priority=priority)

    def _infer(
        self,
        hello: Hello,
        arrays: Mapping[str, NDArray[Any]],
        *,
        timeout_s: float | None,
        priority: int,
    ) -> dict[str, NDArray[Any]]:
        slot = self._keep(hello).slots[0]
        slot.put(arrays)
        outputs = slot.run(timeout_s=timeout_s, priority=priority)
        return {name: output.copy() for name, output in outputs.items()}

    def _keep(self, hello: Hello) -> Model:
        """The model that is open for such requests."""
        key = _key(hello)
        model = self._kept.pop(key, None)
        if model is None or not model.is_open:
            while len(self._kept) >= MAX_KEPT:
                self._kept.popitem(last=False)[1].close()
            model = Model(self._path, hello, look_us=self._look_us)
        self._kept[key] = model
        return model


def _key(hello: Hello) -> bytes:
    return msgspec.json.encode(hello, order="deterministic")


def _as_shapes(
    shapes: Mapping[str, Sequence[int]] | None,
) -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(int, shape)) for name, shape in (shapes or {}).items()}
