"""Arm Ethos-U55, U65 and U85: a full-integer `.tflite`, compiled by Arm's vela.

Nothing here runs the NPU. What vela reports of its own work, which operators it put there and how
long they take by its model of the hardware, counts as estimated; the integers are checked by
running the file that vela was given, which counts as simulated. A profile's provider options say
which NPU it is: `accelerator_config`, `system_config` and `memory_mode`, as vela calls them.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx

from edgekit import storage
from edgekit.errors import BuildError
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.structs import Strict
from edgekit_converters import tflite
from edgekit_converters.targets import Coverage, Found, Job, Product
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.integer_tflite import IntegerTflite, placement, with_conversion
from edgekit_converters.targets.lists import Rules, rules_of
from edgekit_converters.toolchains import environments
from edgekit_converters.toolchains.driving import drive

_KEY = "accelerator_config"
# The one operator that vela makes of all that the NPU runs.
_OPERATOR = "ethos-u"
_GIVEN, _MADE, _REPORT = "given.tflite", "model.tflite", "vela.json"


class Chip(Strict, frozen=True, kw_only=True):
    """An NPU and what it works with, in vela's words; see its `--help` and `Arm/vela.ini`."""

    accelerator_config: Literal[
        "ethos-u55-32",
        "ethos-u55-64",
        "ethos-u55-128",
        "ethos-u55-256",
        "ethos-u65-256",
        "ethos-u65-512",
        "ethos-u85-128",
        "ethos-u85-256",
        "ethos-u85-512",
        "ethos-u85-1024",
        "ethos-u85-2048",
    ]
    system_config: str | None = None
    memory_mode: str | None = None

    @property
    def family(self) -> str:
        """`u55`, `u65` or `u85`."""
        return self.accelerator_config.split("-")[1]


class Report(Strict, frozen=True, kw_only=True):
    """What vela says of its own work; every figure is its estimate.

    Attributes:
        inference_s, cycles: of what the NPU runs.
        npu_macs: as the NPU does them, padding of channels included.
        sram_kib, dram_kib, flash_kib: what the file takes where.
        npu_operators: rows of its table of layers on the NPU.
        cpu_operators: type and tensor of what it left to the CPU.
    """

    system_config: str
    memory_mode: str
    core_clock_hz: float
    inference_s: float
    cycles: int
    npu_macs: int
    sram_kib: float
    dram_kib: float
    flash_kib: float
    npu_operators: int
    cpu_operators: tuple[tuple[str, str], ...]


class EthosU(IntegerTflite):
    """The target."""

    name = "ethosu"
    compiler = "vela"
    toolchains: tuple[str, ...] = ("onnx2tf", "litert-quantizer", compiler)

    def makes_for(self, engine: EngineSpec) -> bool:
        return any(_KEY in provider.options for provider in engine.providers)

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:
        return with_conversion(coverage_of(model, rules_for(chip_of(engine))), model)

    def finish(self, given: Path, raw: bytes, job: Job) -> Product:
        chip = chip_of(job.engine)
        facts = {
            "model": hashlib.sha256(raw).hexdigest(),
            "chip": msgspec.to_builtins(chip),
            "vela": environments.lock_sha256(self.compiler),
        }
        folder = job.shared(self.compiler, facts, partial(_compile, raw, chip))
        report = msgspec.json.decode((folder / _REPORT).read_bytes(), type=Report)
        made = folder / _MADE
        share, left = placement(given, made, operator=_OPERATOR)
        notes = [_told(report, chip)]
        if left:
            notes.append("the time of what the CPU runs is not in vela's estimate")
        return Product(
            path=made,
            placement=Found(
                accelerator_macs=share, fallback_ops=tuple(sorted(left)), evidence="estimated"
            ),
            estimated_ms=None if left else report.inference_s * 1e3,
            notes=tuple(notes),
        )

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        """The delegate of a board with an operating system; firmware links its driver instead."""
        if engine.name == "tflite-micro":
            return {}
        own = Chip.__struct_fields__
        delegates = [
            {
                "name": provider.name,
                "options": {k: v for k, v in provider.options.items() if k not in own},
            }
            for provider in engine.providers
        ]
        return {"threads": engine.threads, "delegates": delegates}

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "simulated"

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002
        if any(operator.name == _OPERATOR for operator in tflite.operators(artifact)):
            return ()
        return (f"no operator {_OPERATOR} is in it, so nothing of it runs on the NPU",)


def chip_of(engine: EngineSpec) -> Chip:
    """The NPU of an engine of a profile.

    Raises:
        BuildError: vela knows no such configuration, or its parts are of two families.
    """
    options = next(provider.options for provider in engine.providers if _KEY in provider.options)
    given = {name: options[name] for name in Chip.__struct_fields__ if name in options}
    try:
        chip = msgspec.convert(given, Chip)
    except msgspec.ValidationError as e:
        raise BuildError(
            f"provider options of engine {engine.name} do not name an Ethos-U: {e}",
            hint="vela --help lists accelerator configurations",
        ) from e
    if (chip.system_config is None) != (chip.memory_mode is None):
        raise BuildError(
            f"provider options of engine {engine.name} give one of system_config and memory_mode",
            hint="give both or none; vela --list-configs Arm/vela.ini shows them",
        )
    # Vela computes with another family's clocks and memories without a word.
    if chip.system_config and not chip.system_config.startswith(f"Ethos_{chip.family.upper()}"):
        raise BuildError(
            f"system_config {chip.system_config} is not one of {chip.accelerator_config}",
            hint=f"name one that begins with Ethos_{chip.family.upper()}",
        )
    return chip


def rules_for(chip: Chip) -> Rules:
    """What a chip takes of an ONNX model."""
    if chip.family == "u85":
        return rules_of("ethosu85")
    title = f"Arm Ethos-{chip.family.upper()}"
    return msgspec.structs.replace(rules_of("ethosu55"), title=title)


def _compile(raw: bytes, chip: Chip, folder: Path) -> None:
    given, made = folder / _GIVEN, folder / _MADE
    storage.write(given, raw)
    request = {
        "model": str(given.absolute()),
        "artifact": str(made.absolute()),
        **msgspec.to_builtins(chip),
    }
    reply = drive("vela", request, driver="vela", folder=folder, produces=[made])
    given.unlink()
    storage.write(folder / _REPORT, msgspec.json.encode(msgspec.convert(reply, Report)))


def _told(report: Report, chip: Chip) -> str:
    assumed = "" if chip.system_config else ", vela's choice as the profile names none"
    memory = ", ".join(
        f"{size:.0f} KiB of {name}"
        for name, size in (
            ("SRAM", report.sram_kib),
            ("DRAM", report.dram_kib),
            ("flash", report.flash_kib),
        )
        if size
    )
    return (
        f"vela estimates {report.cycles} cycles at {report.core_clock_hz / 1e6:.0f} MHz for what"
        f" the NPU ({chip.accelerator_config}) runs, and {memory}, with {report.system_config} and"
        f" {report.memory_mode}{assumed}"
    )


TARGET = EthosU()
