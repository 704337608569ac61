"""Files: an artefact and its samples in the form that drivers run, in any version of an engine.

A driver knows no layouts and no ports: it feeds raw tensors and fetches raw tensors. It is run in
the environment of a tool chain, and in this process, so both sides go through the same calls.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.toolchains.driving import DRIVERS, Limits, drive

# Name of an ONNX tensor, number of a TFLite one: what both versions find it by.
Tensor = str | int


@dataclass(frozen=True)
class Opened:
    """An artefact with samples for it.

    Attributes:
        driver: what runs its format.
        feeds: by input tensor, samples on axis 0, each of which is a whole input.
        outputs: the tensor that stands for each output of the model, by the output's name.
        shown: gives an output of one sample as the model has it, from its name and raw array.
    """

    driver: str
    path: Path
    feeds: Mapping[Tensor, NDArray[Any]]
    outputs: Mapping[str, Tensor]
    shown: Callable[[str, NDArray[Any]], NDArray[Any]]

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.feeds.values())))


@dataclass(frozen=True)
class Exposed:
    """An artefact whose inner tensors can be fetched.

    Attributes:
        path: what is run; the artefact itself where its engine keeps all tensors when asked.
        makers: tensor and the operator that makes it, in words, in running order.
    """

    path: Path
    makers: Sequence[tuple[Tensor, str]]


@dataclass(frozen=True)
class Ran:
    """What a run gave.

    Attributes:
        tensors: as far as the engine has them; axis 0 counts the samples that were run.
        count: how many samples were.
    """

    version: str
    count: int
    tensors: Mapping[Tensor, NDArray[Any]]


def run(
    chain: str | None,
    driver: str,
    path: Path,
    feeds: Mapping[Tensor, NDArray[Any]],
    tensors: Sequence[Tensor],
    *,
    folder: Path,
    inner: bool = False,
    most_s: float | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Ran:
    """Run a file over samples.

    Args:
        chain: the tool chain whose engine runs it; None for the engine here.
        inner: whether tensors inside of the graph are asked for.
        most_s: CPU time after which no further sample begins; None for no limit. One is run always.
        limits: of a tool chain's run.

    Raises:
        BuildError: of `drive`.
        ValueError: the engine here does not take the file.
    """
    inputs, outputs = folder / "pinned-inputs.npz", folder / "pinned-outputs.npz"
    # Names of tensors may be what numpy has a meaning for.
    np.savez(
        inputs, allow_pickle=False, **{f"i{i}": array for i, array in enumerate(feeds.values())}
    )
    request = {
        "model": str(path.absolute()),
        "inputs": str(inputs.absolute()),
        "feeds": list(feeds),
        "outputs": str(outputs.absolute()),
        "tensors": list(tensors),
        "inner": inner,
        "most_s": most_s,
    }
    try:
        if chain is None:
            reply = runpy.run_path(str(DRIVERS / f"{driver}.py"))["run"](request)
        else:
            reply = drive(
                chain, request, driver=driver, folder=folder, produces=[outputs], limits=limits
            )
        with np.load(outputs) as held:
            found = {t: held[f"o{i}"] for i, t in enumerate(tensors) if f"o{i}" in held}
    finally:
        inputs.unlink(missing_ok=True)
        outputs.unlink(missing_ok=True)
    return Ran(version=str(reply["version"]), count=int(reply["count"]), tensors=found)
