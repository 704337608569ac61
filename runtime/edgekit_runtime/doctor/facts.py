"""Facts: what a board says of itself, read from files below a root; no vendor's program is run."""

from __future__ import annotations

import fnmatch
import json
import mmap
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from edgekit.structs import Strict
from edgekit_runtime import sysfs
from edgekit_runtime.engines import versions
from edgekit_runtime.engines.library import installed
from edgekit_runtime.install.wheels import normal

_LIBRARY_FOLDERS = ("usr/lib", "usr/lib/*-linux-gnu*", "usr/local/lib", "lib", "opt/*/lib")
# How Debian's packages begin that bring a driver; the version is theirs.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "cuda": ("cuda-cudart-[0-9]*",),
    "tensorrt": ("libnvinfer[0-9]*",),
    "cudnn": ("libcudnn[0-9]*",),
    "hailort": ("hailort",),
    "libedgetpu": ("libedgetpu1-*",),
    "linux-npu-driver": ("intel-level-zero-npu",),
}
# Kernel modules that say their version.
_MODULES: Mapping[str, str] = {
    "hailort": "hailo_pci",
    "linux-npu-driver": "intel_vpu",
    "rknpu": "rknpu",
}
_CUDA = "usr/local/cuda/version.json"
_JETSON = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_RKNN = re.compile(rb"librknnrt version: ([0-9][0-9.]*)")
_STANZA = re.compile(
    r"^Package: (\S+)\nStatus: (?:install|hold) ok installed\n(?:.*\n)*?Version: (\S+)$",
    re.MULTILINE,
)


class Facts(Strict, frozen=True, kw_only=True):
    """What this board has.

    Attributes:
        system: its name for itself, of `os-release`.
        interpreter: of the environment that edgekit is installed in.
        glibc: None where its C library is another one.
        engines: name to version, of those that are here.
        providers: that onnxruntime has, without plugins.
        packages: Python distributions by name.
        drivers: by the names that profiles use, and `rknpu`.
        libraries: found on the disk, by file name.
        firmware: by the name of what it runs on.
        devices: nodes below `/dev` by path, and groups of character devices as `char-NAME`.
    """

    machine: str
    system: str
    python: str
    interpreter: str
    glibc: str | None
    engines: dict[str, str]
    providers: tuple[str, ...]
    packages: dict[str, str]
    drivers: dict[str, str]
    libraries: dict[str, str]
    firmware: dict[str, str]
    devices: tuple[str, ...]


def gather(*, libraries: tuple[str, ...] = (), root: Path = Path("/")) -> Facts:
    """Read all of it.

    Args:
        libraries: file names to look for, those that the profile's providers name.
        root: where `/usr`, `/proc`, `/sys` and `/dev` are.
    """
    engines = versions()
    libc, glibc = platform.libc_ver()
    return Facts(
        machine=platform.machine(),
        system=_system(root),
        python=platform.python_version(),
        interpreter=sys.executable,
        glibc=glibc if libc == "glibc" else None,
        engines=engines,
        providers=_providers() if "onnxruntime" in engines else (),
        packages={
            normal(name): dist.version
            for dist in metadata.distributions()
            if (name := dist.metadata["Name"])
        },
        drivers=drivers(root),
        libraries={name: str(path) for name in libraries if (path := find(name, root))},
        firmware=dict(_firmware(root)),
        devices=tuple(_devices(root)),
    )


def drivers(root: Path) -> dict[str, str]:
    """Versions of drivers and of the vendor's libraries that go with them."""
    found: dict[str, str] = {}
    for name, module in _MODULES.items():
        if said := sysfs.text(root / "sys/module" / module / "version"):
            found[name] = said.strip()
    packages = debian_packages(sysfs.text(root / "var/lib/dpkg/status") or "")
    for name, patterns in _PACKAGES.items():
        for package, version in packages.items():
            if any(fnmatch.fnmatchcase(package, pattern) for pattern in patterns):
                found[name] = version
    if (cuda := _cuda(root)) is not None:
        found["cuda"] = cuda
    if (tensorrt := installed("tensorrt")) is not None:
        found.setdefault("tensorrt", tensorrt)
    if (rknn := find("librknnrt.so", root)) is not None and (said := _rknn(rknn)):
        found["librknnrt"] = said
    return found


def debian_packages(status: str) -> dict[str, str]:
    """Installed packages and their upstream versions, by dpkg's own record."""
    return {
        name: version.partition(":")[2] or version
        for stanza in status.split("\n\n")
        for name, version in _STANZA.findall(stanza)
    }


def find(name: str, root: Path) -> Path | None:
    """Where a shared library lies, in a folder that the loader looks at or under `/opt`."""
    places = (
        path for folder in _LIBRARY_FOLDERS for path in sorted(root.glob(f"{folder}/{name}*"))
    )
    return next(places, None)


def _system(root: Path) -> str:
    text = sysfs.text(root / "etc/os-release") or ""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return fields.get("PRETTY_NAME", "").strip('"') or platform.system()


def _providers() -> tuple[str, ...]:
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _cuda(root: Path) -> str | None:
    try:
        return str(json.loads((root / _CUDA).read_bytes())["cuda"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rknn(path: Path) -> str | None:
    """The version that Rockchip's library carries in its text."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as raw:
            found = _RKNN.search(raw)
            return found[1].decode().rstrip(".") if found else None
    except (OSError, ValueError):
        return None


def _firmware(root: Path) -> Iterator[tuple[str, str]]:
    release = _JETSON.search(sysfs.text(root / "etc/nv_tegra_release") or "")
    if release is not None:
        yield "Jetson Linux", f"{release[1]}.{release[2]}"
    loader = sysfs.text(root / "proc/device-tree/chosen/bootloader/version")
    if loader:
        yield "bootloader", loader.replace("\0", "").strip()


def _devices(root: Path) -> Iterator[str]:
    text = sysfs.text(root / "proc/devices") or ""
    for line in text.partition("Block devices:")[0].splitlines():
        if group := re.fullmatch(r"\s*\d+ (\S+)", line):
            yield f"char-{group[1]}"
    # Of the nodes only those that are no memory, terminal or disk: a few dozen at most.
    for pattern in ("hailo*", "rknpu", "apex_*", "galcore", "ethosu*", "fastrpc-*", "accel/*"):
        for path in sorted((root / "dev").glob(pattern)):
            yield f"/dev/{path.relative_to(root / 'dev')}"
    if any((root / "dev/dri").glob("renderD*")):
        yield "/dev/dri"
