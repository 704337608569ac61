"""Arm's compiler for Ethos-U: a full-integer `.tflite` in, one with the NPU's command stream out.

Request: `model` and `artifact` (paths), `accelerator_config`, `system_config` and `memory_mode`
(null for vela's own choice). Reply: what vela's summary and its table of layers say; every figure
is an estimate by its own model of the hardware.
"""

import csv
import os
import re
import subprocess
import sys
from typing import Any

# The one configuration file that the package ships; names in it are Arm's.
_CONFIG = "Arm/vela.ini"
_IMPORT_FAILED = re.compile(
    r"^(ImportError|ModuleNotFoundError): |: No module named \S+\s*\Z", re.MULTILINE
)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Compile, and report what runs where."""
    command = [
        *(sys.executable, "-m", "ethosu.vela", request["model"], "--output-dir", "."),
        *("--accelerator-config", request["accelerator_config"]),
        *("--verbose-performance", "--show-cpu-operations"),
    ]
    if request["system_config"]:
        command += ["--config", _CONFIG, "--system-config", request["system_config"]]
        command += ["--memory-mode", request["memory_mode"]] if request["memory_mode"] else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stdout.write(f"{done.stdout}\n{done.stderr}\n")
    if _IMPORT_FAILED.search(done.stderr):
        raise ImportError(done.stderr.strip().splitlines()[-1])
    # It may say what is wrong, write nothing and exit 0.
    name = os.path.splitext(os.path.basename(request["model"]))[0]
    made = f"{name}_vela.tflite"
    if done.returncode != 0 or not os.path.isfile(made):
        raise ValueError(_reason(done.stderr, done.stdout) or "it wrote no file, and no reason")
    os.replace(made, request["artifact"])
    return {**_summary(), **_layers(f"{name}_per-layer.csv")}


def _reason(*texts: str) -> str:
    """The line that says what is wrong, without the name of vela's exception."""
    for text in texts:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        told = [line for line in lines if re.match(r"([\w.]*(Error|Exception)|vela: error)", line)]
        if told or lines:
            return re.sub(r"^[\w.]*(Error|Exception): ?", "", (told or lines)[-1]).strip("\"' ")
    return ""


def _summary() -> dict[str, Any]:
    files = [name for name in os.listdir() if "_summary_" in name and name.endswith(".csv")]
    if len(files) != 1:
        raise ValueError("it wrote no summary")
    with open(files[0], newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    return {
        "system_config": row["system_config"],
        "memory_mode": row["memory_mode"],
        "core_clock_hz": float(row["core_clock"]),
        "inference_s": float(row["inference_time"]),
        "cycles": int(float(row["cycles_total"])),
        "npu_macs": int(float(row["nn_macs"])),
        "sram_kib": float(row["sram_memory_used"]),
        "dram_kib": float(row["dram_memory_used"]),
        "flash_kib": float(row["on_chip_flash_memory_used"])
        + float(row["off_chip_flash_memory_used"]),
    }


def _layers(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise ValueError("it wrote no table of layers")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cpu = [row for row in rows if row["Target"] == "CPU"]
    return {
        "npu_operators": len(rows) - len(cpu),
        "cpu_operators": [[row["Original Operator"], row["Name"]] for row in cpu],
    }
