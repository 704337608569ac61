"""Coral Edge TPU: a full-integer `.tflite`, compiled by Google's `edgetpu_compiler`.

The compiler is in no package index; where it is not on PATH the scheme is rejected with the command
that adds it, and the board's CPU engines remain. Nothing here can run on an Edge TPU, so what it
makes counts as linted.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgekit.errors import BuildError
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit_converters.passes import Style
from edgekit_converters.targets import Format

COMPILER = "edgetpu_compiler"
_TIME_LIMIT_S = 600
_INTEGERS = frozenset({"INT8", "UINT8"})


class EdgeTpu:
    """The target."""

    format: Format = "tflite"
    style: Style = "onnxruntime"

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name in ("litert", "tflite-runtime") and engine.accelerator == "tpu"

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        return "int8"

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        return {
            "threads": engine.threads,
            "delegates": [
                {"name": provider.name, "options": dict(provider.options)}
                for provider in engine.providers
            ],
        }

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:  # noqa: ARG002
        return {"threads": engine.threads}

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "linted"

    def finish(self, artifact: Path) -> Path:
        """Compile; a `BuildError` where the model is not full-integer or there is no compiler."""
        _require_full_integer(artifact)
        if shutil.which(COMPILER) is None:
            raise BuildError(
                f"{COMPILER} is not on PATH",
                hint="add Google's package source (coral.ai/docs/edgetpu/compiler), then"
                " apt-get install edgetpu-compiler",
            )
        folder = artifact.parent
        command = [COMPILER, "--out_dir", str(folder), str(artifact)]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise BuildError(f"{COMPILER} did not finish: {e}") from e
        compiled = folder / f"{artifact.stem}_edgetpu.tflite"
        if run.returncode != 0 or not compiled.is_file():
            lines = (run.stderr or run.stdout).strip().splitlines()
            raise BuildError(f"{COMPILER} refused the model: {lines[-1] if lines else 'no reason'}")
        return compiled

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002
        return ()


def _require_full_integer(artifact: Path) -> None:
    from edgekit_runtime.engines import ENGINES

    session = ENGINES.get("litert").open(artifact, options={})
    try:
        floats = [
            s.name for s in (*session.inputs, *session.outputs) if s.datatype not in _INTEGERS
        ]
    finally:
        session.close()
    if floats:
        raise BuildError(
            f"the Edge TPU takes full-integer models, and {floats[0]!r} is not int8 or uint8",
            hint="quantise the model to full integer (inputs and outputs too) before the build",
        )


TARGET = EdgeTpu()
