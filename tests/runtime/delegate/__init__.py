"""An external delegate of LiteRT, built from one C file where the machine has a C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("adds.c")

_FLAGS = ("-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared")

needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="there is no gcc: `make system-deps` installs it"
)


def build(folder: Path) -> Path:
    """The shared library of `adds.c`."""
    made = folder / "libadds_delegate.so"
    command = ["gcc", *_FLAGS, "-fvisibility=hidden", str(SOURCE), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made
