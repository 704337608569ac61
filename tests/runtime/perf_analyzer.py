"""perf_analyzer: Triton's own load tool, unchanged, in an environment of its own.

Its program ships in one wheel, for x86_64 Linux. It needs two libraries at run time that it does
not bring: libb64, a Debian package, and NVIDIA's CUDA runtime, of which no GPU is asked for. Run as
a program, this module puts all three where the tests look for them:

    python -m tests.runtime.perf_analyzer
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekit import storage

WHEELS = ("tritonclient==2.46.0", "nvidia-cuda-runtime-cu12==12.9.79")
LIBRARY = "libb64-0d"
# Found on import, before a test has a home of its own.
FOLDER = storage.data_home() / "perf_analyzer"


def program() -> Path | None:
    """Where it is; `None` where it is not installed."""
    found = FOLDER / "venv" / "bin" / "perf_analyzer"
    return found if found.exists() and _libraries() else None


def install(folder: Path = FOLDER) -> None:
    """Put the program and its libraries into `folder`."""
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run(["uv", "venv", "--allow-existing", str(folder / "venv")], check=True)
    pip = ["uv", "pip", "install", "--python", python, "--no-deps"]
    subprocess.run([*pip, *WHEELS], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", LIBRARY], cwd=scratch, check=True)
        (package,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg", "-x", str(package), str(folder / "lib")], check=True)


def measure(model: str, address: str, *options: str, shapes: Sequence[str]) -> str:
    """What it prints having loaded a model at concurrency 1 for as long as it takes to be sure.

    Args:
        model: its name.
        address: host and port.
        options: more of the command line.
        shapes: of the inputs, as `NAME:SIZE,SIZE`.
    """
    found = program()
    assert found is not None
    command = [
        str(found), "-m", model, "-u", address, "-i", "http",
        *(part for shape in shapes for part in ("--shape", shape)),
        # Machines are shared: a few requests are enough to see that they are answered.
        "--measurement-mode", "count_windows", "--measurement-request-count", "50",
        "--stability-percentage", "999", *options,
    ]  # fmt: skip
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, _libraries()))}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _libraries() -> list[Path]:
    """Folders that hold its libraries."""
    wanted = (("lib", "libb64.so.0d"), ("venv", "libcudart.so.12"))
    found = [list((FOLDER / part).rglob(name))[:1] for part, name in wanted]
    return [path.parent for paths in found for path in paths] if all(found) else []


if __name__ == "__main__":
    install()
