"""Google's compiler for the Coral Edge TPU, a program that no package index carries.

Request: `model` and `artifact` (paths). Reply: nothing; what runs where is read off the artefact.
The compiler has not been run with this driver; what it is given is what its documentation shows.
"""

import os
import re
import subprocess
import sys
from typing import Any

_PROGRAM = "edgetpu_compiler"


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Compile."""
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
    return {}


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"error|invalid|not |fail|abort", line, re.I)]
    return (told or lines or ["it wrote no file, and no reason"])[-1]
