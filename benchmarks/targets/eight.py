"""Build EfficientNet-Lite0 for eight boards in one command: seconds, agreement, placement, digests.

Run: python -m benchmarks.targets.eight [--crops 45] [--profile NAME …] [--json FILE]

Figures to reach: at most 300 s on two cores for all boards, with the tool chains installed
(`make toolchains`); every operator on an Ethos-U; agreement of .90 in the simulator of Rockchip and
the emulation of Qualcomm; int8 in LiteRT on this machine 2 times as fast as float there, at .9; the
same digest when everything is made again, for every board but those of Rockchip, whose compiler
writes another file each time. Both builds begin with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.process import tell
from edgekit import storage
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos

BOARDS = (
    "generic-x86_64",
    "raspberry-pi-5",
    "jetson-orin-nano",
    "imx93",
    "ethos-u55-128",
    "rk3588",
    "qcs6490",
    "intel-n100",
)
LITERT = f"generic-{platform.machine()}"
START = "from edgekit.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--crops", type=int, default=45, help="crops of each of 20 photographs")
    parser.add_argument("--profile", action="append", help="a board; eight by default")
    parser.add_argument("--once", action="store_true", help="do not make everything again")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        boards = tuple(given.profile or BOARDS)
        figures = measure(Path(folder), boards, crops=given.crops, once=given.once)
    tell(figures, file=given.json)


def measure(folder: Path, boards: tuple[str, ...], *, crops: int, once: bool) -> dict[str, Any]:
    """All boards in one command, and all of them again; figures by name."""
    write_lite0(folder / "lite0.onnx")
    write_photos(folder, crops=crops)
    load = os.getloadavg()[0]
    first, seconds, cpu_s = _build(folder, boards, cache=folder / "cache-1")
    litert, _, _ = _build(folder, (LITERT,), "--engine", "litert", cache=folder / "cache-1")
    figures: dict[str, Any] = {
        "boards": len(boards),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_s, 1),
        "load_before": round(load, 2),
        "measured_on": first["bundles"][0]["measured_on"] if first["bundles"] else None,
        "failed": {entry["profile"]: entry["error"] for entry in first["failed"]},
    }
    for bundle in first["bundles"]:
        figures[bundle["profile"]] = {
            "seconds": bundle["seconds"],
            "gate": bundle["gate"]["outcome"],
            **{variant["name"]: _told(variant) for variant in bundle["variants"]},
        }
    figures["in LiteRT"] = {
        variant["name"]: _told(variant)
        for bundle in litert["bundles"]
        for variant in bundle["variants"]
    }
    if not once:
        again, _, _ = _build(folder, boards, cache=folder / "cache-2")
        before = {bundle["profile"]: bundle["digest"] for bundle in first["bundles"]}
        figures["same_digest"] = {
            bundle["profile"]: bundle["digest"] == before.get(bundle["profile"])
            for bundle in again["bundles"]
        }
    return figures


def _build(
    folder: Path, boards: tuple[str, ...], *options: str, cache: Path
) -> tuple[dict[str, Any], float, float]:
    command = [
        *(sys.executable, "-c", START, "build", str(folder / "lite0.onnx")),
        *(word for board in boards for word in ("--profile", board)),
        *("--data", str(folder / "photos.npz"), "--out", str(folder), "--json"),
        *options,
    ]
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "EDGEKIT_TOOLCHAINS": os.environ.get(
            "EDGEKIT_TOOLCHAINS", str(storage.data_home() / "toolchains")
        ),
    }
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as run:
        assert run.stdout is not None
        answer = run.stdout.read()
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    if not answer:
        raise SystemExit(f"the build ended with {run.returncode}")
    # The time of tools that the build waited for is in it.
    return json.loads(answer), seconds, usage.ru_utime + usage.ru_stime


def _told(variant: dict[str, Any]) -> str:
    parts = [f"{variant['engine']} ({variant['accelerator']})", variant["scheme"]]
    if variant["agreement"] is not None:
        low, high = variant["agreement_ci95"] or (None, None)
        ends = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        parts.append(f"agreement {variant['agreement']:.3f}{ends}")
    if variant["speedup"] is not None:
        parts.append(f"{variant['speedup']:.2f}x")
    if variant["estimated_ms"] is not None:
        parts.append(f"estimated {variant['estimated_ms']:.2f} ms")
    share = variant["placement"]["accelerator_macs"]
    if share is not None and variant["accelerator"] != "cpu":
        parts.append(f"{share:.4f} of MACs there")
    return " · ".join([*parts, variant["evidence"]])


if __name__ == "__main__":
    main()
