"""torch_to_onnx: a program that reads a torch ExportedProgram and writes it as ONNX.

    python torch_to_onnx.py program.pt2 out.onnx

It runs in a process of its own, in any environment with torch and onnxscript, and imports nothing
of edgekit; its reply goes to `out.json`. `torch.export.load` trusts its file, so the file must be
one that `pt2.rewrite` wrote, or one whose maker the user trusts by name.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

OPSET = 18


class Refused(Exception):
    """There will be no model; the reason and what to do next."""

    def __init__(self, error: str, hint: str, *, missing: bool = False) -> None:
        super().__init__(error)
        self.reply: dict[str, Any] = {"error": error, "hint": hint, "missing": missing}


def main(source: Path, target: Path) -> None:
    """Convert and leave the reply beside the target."""
    try:
        reply = _convert(source, target)
    except Refused as e:
        reply = e.reply
    target.with_suffix(".json").write_text(json.dumps(reply))


def _convert(source: Path, target: Path) -> dict[str, Any]:
    try:
        import onnxscript  # noqa: F401
        import torch
    except ImportError as e:
        hint = "pip install torch, and pip install 'edgekit-ml[torch]'"
        raise Refused(f"{e.name} is not installed", hint, missing=True) from e
    torch.set_num_threads(1)
    version = torch.__version__
    try:
        program = torch.export.load(source)
    # torch raises whatever its schema, its zip reader or sympy raise.
    except Exception as e:
        raise Refused(
            f"is not a program that torch {version} reads: {_line(e)}",
            f"export and save it again with torch {version}",
        ) from e
    try:
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    # An operator without a translation, or a translation that fails.
    except Exception as e:
        raise Refused(
            f"cannot be exported to ONNX: {_line(e)}",
            "write the operator that is named with others, or build from your own ONNX",
        ) from e
    model = exported.model_proto
    _plain(model)
    target.write_bytes(model.SerializeToString(deterministic=True))
    names = ("torch", "onnxscript", "onnx-ir")
    return {"tools": {name: metadata.version(name) for name in names}}


def _plain(model: Any) -> None:
    """Leave out what tells of the machine that exported: paths, modules, stack traces."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for part in (*model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]


def _line(error: Exception) -> str:
    """The last cause in a line; torch wraps causes in pages of advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
