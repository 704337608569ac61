"""What a peer is: its pinned environment, its command line, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Engine = Literal["onnxruntime", "openvino"]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that makes an artefact of a model.

    `command` is what its user types, less `-m MODEL -o OUT`; a peer without one has a `script` of
    this package, run as `script MODEL SAMPLES OUT` in its environment.
    """

    name: str
    environment: str
    requirements: tuple[str, ...]
    how: str
    command: tuple[str, ...] = ()
    script: str = ""
    artefact: str = "model.onnx"
    engine: Engine = "onnxruntime"

    def command_line(self, python: Path, model: Path, samples: Path, out: Path) -> list[str]:
        """The arguments that start it, with the Python of its environment."""
        if self.command:
            program = python.parent / self.command[0]
            return [str(program), *self.command[1:], "-m", str(model), "-o", str(out)]
        module = f"{__package__}.{self.script}"
        return [str(python), "-m", module, str(model), str(samples), str(out)]
