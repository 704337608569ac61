"""Hailo's Dataflow Compiler by its program `hailo`: ONNX and samples in, a HEF out.

Request: `model` (path of an ONNX file of fixed shapes), `arch` (as `hailo8l`), `samples` (path of a
`.npy`, axis 0 counts, channels last), `artifact` (path). It has not been run: the compiler is in no
package index. Its three steps and their options are those of its user guide.
"""

import glob
import os
import subprocess
import sys
from typing import Any

_PROGRAM = "hailo"


def run(request: dict[str, Any]) -> dict[str, Any]:
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
    return {}


def _step(*words: str) -> None:
    done = subprocess.run(
        [_PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise ValueError(f"hailo {words[0]}: {lines[-1] if lines else 'no reason'}")


def _require(path: str, step: str) -> None:
    # It may say what is wrong, write nothing and exit 0.
    if not os.path.isfile(path) or not os.path.getsize(path):
        raise ValueError(f"hailo {step} wrote nothing")
