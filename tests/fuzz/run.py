"""Fuzz the functions that read what strangers send, guided by coverage (atheris, libFuzzer).

    python -m tests.fuzz.run --seconds 60
    python -m tests.fuzz.run --seconds 600 --target request

atheris has wheels for some Pythons only, so it lives in an environment of its own below the cache
folder, with what a board installs, as uv.lock has it. The corpus stays there: a later run goes on
where this one ended. An input that fails is written beside it and named; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgekit import storage
from tests.fuzz.targets import TARGETS

ATHERIS = "atheris==3.0.0"
PYTHON = "3.11"
# An input that takes longer or needs more is a failure, too.
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=4096", "-print_final_stats=1")
_ROOT = Path(__file__).parents[2]
_DONE = re.compile(r"DONE\s+cov: (\d+)")
_WRITTEN = re.compile(r"Test unit written to (\S+)")
_RUNS = re.compile(r"number_of_executed_units: (\d+)")


def main() -> int:
    """Fuzz; the exit code: 0, or 1 where an input fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    given = parser.parse_args()
    folder = storage.cache_home() / "fuzz"
    python = environment(folder)
    names = [given.target] if given.target else list(TARGETS)
    outcomes = [fuzz(python, name, folder, seconds=given.seconds) for name in names]
    return 0 if all(outcomes) else 1


def environment(folder: Path) -> Path:
    """The Python of the environment, made where it is missing or was made for another lock."""
    place = folder / "venv"
    python, ready = place / "bin" / "python", place / "ready"
    lock = (_ROOT / "uv.lock").read_text()
    if ready.exists() and ready.read_text() == lock:
        return python
    # make puts uv beside this Python where the machine has none.
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    with tempfile.NamedTemporaryFile(suffix=".txt") as wanted:
        export = [uv, "export", "--quiet", "--locked", "--no-default-groups"]
        export += ["--no-emit-project", "--extra", "device", "--extra", "grpc"]
        subprocess.run([*export, "--output-file", wanted.name], cwd=_ROOT, check=True)
        make = [uv, "venv", "--quiet", "--clear", "--python", PYTHON, str(place)]
        subprocess.run(make, check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*install, "--requirement", wanted.name], check=True)
        subprocess.run([*install, ATHERIS], check=True)
    ready.write_text(lock)
    return python


def fuzz(python: Path, name: str, folder: Path, *, seconds: int) -> bool:
    """Fuzz one target and say what came of it; whether nothing failed."""
    place = folder / name
    place.mkdir(exist_ok=True)
    options = [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={place}/failure-"]
    done = subprocess.run(
        [str(python), "-m", "tests.fuzz.child", name, str(place), *options],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(_ROOT), str(_ROOT / "runtime")))},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    coverage, runs = _DONE.findall(done.stderr), _RUNS.findall(done.stderr)
    if done.returncode == 0 and runs:
        covered = coverage[-1] if coverage else "?"
        said = f"{int(runs[-1]):>10,} inputs, {covered} edges, none failed"
    else:
        written = _WRITTEN.findall(done.stderr)
        said = f"FAILED on {written[-1] if written else 'no input'}\n{_why(done)}"
    sys.stdout.write(f"{name:8} {said}\n")
    sys.stdout.flush()
    return done.returncode == 0


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """The traceback, or what was said last."""
    said = done.stdout + done.stderr
    _, found, rest = said.partition("=== Uncaught Python exception: ===")
    return rest.partition("INFO: ")[0].strip() if found else said[-4000:]


if __name__ == "__main__":
    raise SystemExit(main())
