"""Coral Edge TPU: a full-integer `.tflite`, compiled by Google's `edgetpu_compiler`.

The compiler is in no package index. Without it on PATH nothing is shipped for the TPU, and the
reason names it; the lint, of the ONNX graph and of the integer file, needs no compiler. Nothing
here can run on an Edge TPU, and neither the driver nor its reading of the log has met the compiler,
so what it makes counts as linted.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from edgekit import storage
from edgekit.errors import BuildError
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit_converters import tflite
from edgekit_converters.targets import Coverage, Found, Job, Product, edgetpu_lint
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.integer_tflite import IntegerTflite, placement, with_conversion
from edgekit_converters.targets.lists import rules_of
from edgekit_converters.toolchains import environments
from edgekit_converters.toolchains.driving import Limits, drive

# The one operator that the compiler makes of all that the TPU runs.
_OPERATOR = "edgetpu-custom-op"
_GIVEN, _MADE = "given.tflite", "model.tflite"


class EdgeTpu(IntegerTflite):
    """The target.

    Args:
        limits: of one call of the compiler.
    """

    name = "edgetpu"
    compiler = "edgetpu"
    toolchains: tuple[str, ...] = ("onnx2tf", "litert-quantizer", compiler)

    def __init__(self, *, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self._limits = limits

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name in ("litert", "tflite-runtime") and engine.accelerator == "tpu"

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:  # noqa: ARG002
        return with_conversion(coverage_of(model, rules_of("edgetpu")), model)

    def finish(self, given: Path, raw: bytes, job: Job) -> Product:
        plan = edgetpu_lint.plan(raw)
        if not plan.on_tpu:
            first = plan.fallback[0]
            raise BuildError(
                f"nothing of {given.name} would run on the Edge TPU: {first.operator}"
                f" {first.node}: {first.reason}",
                hint="build for a CPU engine of the board",
            )
        facts = {
            "model": hashlib.sha256(raw).hexdigest(),
            "compiler": environments.lock_sha256(self.compiler),
        }
        make = partial(_compile, raw, limits=self._limits)
        made = job.shared(self.compiler, facts, make) / _MADE
        share, left = placement(given, made, operator=_OPERATOR)
        return Product(
            path=made,
            placement=Found(
                accelerator_macs=share, fallback_ops=tuple(sorted(left)), evidence="linted"
            ),
            notes=tuple(edgetpu_lint.reasons(plan)),
        )

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        delegates = [
            {"name": provider.name, "options": dict(provider.options)}
            for provider in engine.providers
        ]
        return {"threads": engine.threads, "delegates": delegates}

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "linted"

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002
        if any(operator.name == _OPERATOR for operator in tflite.operators(artifact)):
            return ()
        return (f"no operator {_OPERATOR} is in it, so nothing of it runs on the TPU",)


def _compile(raw: bytes, folder: Path, *, limits: Limits) -> None:
    given, made = folder / _GIVEN, folder / _MADE
    storage.write(given, raw)
    request = {"model": str(given.absolute()), "artifact": str(made.absolute())}
    drive("edgetpu", request, driver="edgetpu", folder=folder, produces=[made], limits=limits)
    given.unlink()
    _require_compiled(made)


def _require_compiled(made: Path) -> None:
    """Raise `BuildError` where what the compiler left has nothing for the TPU."""
    if all(operator.name != _OPERATOR for operator in tflite.operators(made)):
        raise BuildError(
            "edgetpu_compiler put nothing on the Edge TPU", hint="its log tells which and why"
        )


TARGET = EdgeTpu()
