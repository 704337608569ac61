"""Google's compiler for the Coral Edge TPU, a program that no package index carries.

Request: `model` and `artifact` (paths). Reply: what its log says of operators and of the parameters
that lie on the chip. The compiler has not been run with this driver; the form of its log is the one
that its documentation shows.
"""

import os
import re
import subprocess
import sys
from typing import Any

_PROGRAM = "edgetpu_compiler"
_STATUS = re.compile(r"^([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*)$")
_ON_TPU = "Mapped to Edge TPU"
_MEMORY = {
    "cached": "On-chip memory used for caching model parameters",
    "streamed": "Off-chip memory used for streaming uncached model parameters",
}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Compile, and report what the log says."""
    command = [_PROGRAM, "--show_operations", "--out_dir", ".", request["model"]]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    # It exits 0 where it wrote nothing, too.
    name = os.path.splitext(os.path.basename(request["model"]))[0]
    made = name + "_edgetpu.tflite"
    if done.returncode != 0 or not os.path.isfile(made):
        raise ValueError(_reason(done.stdout))
    os.replace(made, request["artifact"])
    return _read(done.stdout)


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"error|invalid|not |fail|abort", line, re.I)]
    return (told or lines or ["it wrote no file, and no reason"])[-1]


def _read(log: str) -> dict[str, Any]:
    rows = [found.groups() for line in log.splitlines() if (found := _STATUS.match(line.strip()))]
    return {
        "tpu": [[name, int(count)] for name, count, status in rows if status == _ON_TPU],
        "cpu": [[name, int(count), status] for name, count, status in rows if status != _ON_TPU],
        **{key: _after(text, log) for key, text in _MEMORY.items()},
    }


def _after(text: str, log: str) -> str:
    found = re.search(re.escape(text) + r":\s*(\S+)", log)
    return found.group(1) if found else ""
