"""TFLite artefacts as drivers run them: raw tensors, whatever interface their options show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters import tflite
from edgekit_converters.pinned.files import Exposed, Opened
from edgekit_runtime.engines.batches import SampleArrays, iter_batches
from edgekit_runtime.engines.litert import ENGINE

DRIVER = "tflite"
# What of a variant's options says how the file shows the model's interface.
_PLACES = ("inputs", "outputs")


def opened(
    path: Path, inputs: SampleArrays, outputs: Sequence[str], *, options: Mapping[str, Any]
) -> Opened:
    """The file with samples, raising `EngineError` where LiteRT here does not open it.

    Args:
        options: of the artefact, as engine litert reads them.
    """
    places = {name: options[name] for name in _PLACES if name in options}
    session = ENGINE.open(path, options=places)
    try:
        into, out = session.ports
        numbers = session.numbers
    finally:
        session.close()
    singles = list(iter_batches([port.spec for port in into], inputs, size=1))
    shows = {port.spec.name: port for port in out}

    def shown(name: str, array: NDArray[Any]) -> NDArray[Any]:
        return shows[name].to_model(array)

    return Opened(
        driver=DRIVER,
        path=path,
        feeds={
            numbers[port.tensor.spec.name]: np.stack(
                [port.to_file(np.asarray(one[port.spec.name])) for one in singles]
            )
            for port in into
        },
        outputs={name: numbers[shows[name].tensor.spec.name] for name in outputs},
        shown=shown,
    )


def exposed(path: Path) -> Exposed:
    """The file itself: its engines keep all tensors when asked."""
    model = tflite.unpacked(path.read_bytes())
    names = [tensor.name.decode() for tensor in model.subgraphs[0].tensors]
    makers = [
        (tensor, f"{operator.name} {names[tensor]!r}")
        for operator in tflite.operators(path)
        for tensor in operator.makes
    ]
    return Exposed(path=path, makers=makers)
