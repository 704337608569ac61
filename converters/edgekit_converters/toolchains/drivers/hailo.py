"""Hailo's Dataflow Compiler by its program `hailo`, and its emulator by the Python beside it.

Task `compile`: `model` (path of an ONNX file of fixed shapes), `arch` (as `hailo8l`), `samples`
(path of a `.npy`, axis 0 counts, channels last), `artifact` and `archive` (paths of the HEF and of
the quantised model that the emulator runs). Task `run`: `archive`, `arch`, `samples` and `outputs`
(`.npz`, as `targets.whole` has them). It has not been run: the compiler is in no package index. Its
steps and their options are those of its user guide.
"""

import glob
import os
import shutil
import subprocess
import sys
from typing import Any

_PROGRAM = "hailo"
_EMULATOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hailo_emulator.py")


def run(request: dict[str, Any]) -> dict[str, Any]:
    return _run(request) if request["task"] == "run" else _compile(request)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Answer samples in the emulator, which only the compiler's own Python can import."""
    program = shutil.which(_PROGRAM)
    if program is None:
        raise ValueError(f"{_PROGRAM} is not on PATH")
    python = os.path.join(os.path.dirname(os.path.realpath(program)), "python")
    words = [request[name] for name in ("archive", "arch", "samples", "outputs")]
    _call([python, _EMULATOR, *words], "the emulator")
    return {}


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    """Parse, quantise, compile."""
    arch = ["--hw-arch", request["arch"]]
    _step("parser", "onnx", request["model"], *arch, "--har-path", "parsed.har", "-y")
    _require("parsed.har", "parser")
    samples = ["--calib-set-path", request["samples"]]
    _step("optimize", "parsed.har", *arch, *samples, "--output-har-path", "quantised.har")
    _require("quantised.har", "optimize")
    _step("compiler", "quantised.har", *arch, "--output-dir", ".")
    made = glob.glob("*.hef")
    if len(made) != 1:
        raise ValueError(f"hailo compiler wrote {len(made)} files of type .hef")
    os.replace(made[0], request["artifact"])
    os.replace("quantised.har", request["archive"])
    return {}


def _step(*words: str) -> None:
    _call([_PROGRAM, *words], f"hailo {words[0]}")


def _call(command: list[str], what: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise ValueError(f"{what}: {lines[-1] if lines else 'no reason'}")


def _require(path: str, step: str) -> None:
    # It may say what is wrong, write nothing and exit 0.
    if not os.path.isfile(path) or not os.path.getsize(path):
        raise ValueError(f"hailo {step} wrote nothing")
