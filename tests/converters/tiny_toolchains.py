"""A tool chain of one small package, installed for real from a wheel that is made here."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from edgekit_converters import toolchains
from edgekit_converters.toolchains import ToolChain

NAME = "tiny"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# A tool that takes its time to be imported where it is told to.
_CODE = """\
import os, time
VERSION = "{version}"
time.sleep(float(os.environ.get("INKPOT_SLEEPS", "0")))
"""


def write_lock(folder: Path, *, version: str = "1.0", code: str = _CODE) -> Path:
    """Make the package `inkpot` in `folder`, and the lock that asks for it."""
    info = f"inkpot-{version}.dist-info"
    members = {
        "inkpot.py": code.format(version=version),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: inkpot\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ninkpot = inkpot:main\n",
    }
    record = [_recorded(name, content.encode()) for name, content in members.items()]
    members[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"])
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"inkpot-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    lock = folder / "tiny.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(f"inkpot=={version} --hash=sha256:{digest}\n")
    return lock


def add(monkeypatch: pytest.MonkeyPatch, chain: ToolChain) -> None:
    """Have a tool chain known for one test."""
    monkeypatch.setitem(toolchains.TOOLCHAINS, chain.name, chain)


def tiny(lock: Path, *, size_mb: int = 1, glibc: str = "2.17", python: str = PYTHON) -> ToolChain:
    """The tool chain of a lock."""
    return ToolChain(
        name=NAME,
        title="tiny",
        python=python,
        imports=("inkpot",),
        glibc=glibc,
        size_mb=size_mb,
        lock=lock,
    )


def _recorded(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"
