"""Hardware: which device and driver this is, as far as Linux tells, without any vendor's library.

A compiled model is for one of these. Kernel drivers of the kernel's own tree carry no version; they
change with the kernel, so its release counts.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

_FILES: Mapping[str, str] = {
    "device_tree": "proc/device-tree/compatible",
    "soc_id": "sys/devices/soc0/soc_id",
    "soc_revision": "sys/devices/soc0/revision",
    "jetson_linux": "etc/nv_tegra_release",
    "nvidia_driver": "proc/driver/nvidia/version",
    "npu_driver": "sys/module/intel_vpu/version",
    "kernel": "proc/sys/kernel/osrelease",
}
_CPU_MODEL = "model name"
# Of GPUs and NPUs that the kernel has a driver for.
_ACCELERATORS = ("sys/class/drm/renderD*", "sys/class/accel/accel*")


def identity(*, root: Path = Path("/")) -> dict[str, str]:
    """What is known of the device and its drivers, by what it is; a fact that is not told is left
    out.

    Args:
        root: where `/proc`, `/sys` and `/etc` are.
    """
    found = {"machine": platform.machine()}
    for name, file in _FILES.items():
        if text := _text(root / file):
            found[name] = text
    lines = _text(root / "proc/cpuinfo").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith(_CPU_MODEL))
    if (model := next(models, None)) is not None:
        found["cpu"] = model
    places = (place for pattern in _ACCELERATORS for place in sorted(root.glob(pattern)))
    chips = [_chip(place / "device") for place in places]
    if any(chips):
        found["accelerators"] = " ".join(filter(None, chips))
    return found


def _chip(device: Path) -> str:
    """Maker and kind of a device on a bus that tells them, as `8086:643e`."""
    parts = (_text(device / name).removeprefix("0x") for name in ("vendor", "device"))
    return ":".join(filter(None, parts))


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError:
        return ""
    # A device tree separates texts by zeros.
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()
