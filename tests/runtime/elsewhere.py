"""Running a test module in a tool chain's environment: engines whose library is not in this one."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

from edgekit_converters.toolchains.environments import python_of

ROOT = Path(__file__).parents[2]

# Behind the environment's own packages: edgekit's code, and what it and the tests need.
_PROGRAM = """
import sys
sys.path += sys.argv[1:4]
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[4:]]))
"""


def run_tests(module: Path, *, toolchain: str) -> str:
    """Run a module's tests in an environment, all of which must pass; what pytest printed."""
    packages = sysconfig.get_paths()["platlib"]
    paths = (str(ROOT), str(ROOT / "runtime"), packages)
    done = subprocess.run(
        [str(python_of(toolchain)), "-c", _PROGRAM, *paths, str(module)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
