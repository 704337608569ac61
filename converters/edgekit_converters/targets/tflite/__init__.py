"""What targets share whose artefacts are TFLite files: one conversion, one quantised file.

ONNX becomes a float `.tflite` (`convert`), and that a full-integer one (`quantise`) with ranges
that were observed on it (`observe`). A file keeps the names, datatypes and layout of the source
for whoever opens it with its options: engine litert transposes and quantises at its edges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.structs import Strict

TOOLCHAINS = ("onnx2tf", "litert-quantizer")


class Port(Strict, frozen=True, kw_only=True):
    """An input or output of the source, and what stands for it in the file.

    Attributes:
        name: as the source calls it.
        tensor: as the file calls it.
        axes: the file's axes are these axes of the source, in this order; None for the same.
    """

    name: str
    tensor: str
    axes: tuple[int, ...] | None = None

    def option(self) -> dict[str, Any]:
        """As engine litert reads it."""
        axes = {} if self.axes is None else {"axes": list(self.axes)}
        return {"name": self.name, "tensor": self.tensor, **axes}


class TfliteFile(Strict, frozen=True, kw_only=True):
    """A `.tflite` file and how the source's inputs and outputs are found in it."""

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def options(self) -> dict[str, Any]:
        """What engine litert opens the file with, to show the source's interface."""
        return {
            "inputs": [port.option() for port in self.inputs],
            "outputs": [port.option() for port in self.outputs],
        }
