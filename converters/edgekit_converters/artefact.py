"""Artefact: one model file that was made for one engine, with all that was found out about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgekit.manifest import Needs
from edgekit.profile import EngineSpec, Evidence
from edgekit_converters.evaluate import Evaluation
from edgekit_converters.gate import Figures
from edgekit_converters.inspect import operators, peak_activation_bytes
from edgekit_converters.measure import Timing, speedup
from edgekit_converters.normalise import opset_of
from edgekit_converters.source import TfliteSource
from edgekit_converters.targets.litert import operator_counts
from edgekit_converters.workshop import Answers


@dataclass(frozen=True)
class Made:
    """An artefact that was made, run and measured.

    Attributes:
        scheme: how it was made; `source` where no pass changed it.
        options: what the board opens it with.
        evidence: what running it here proves about the board.
        answers: what it answered on this machine.
        evaluation: against the source, on evaluation samples; None without them.
        largest_error: largest difference from the source's answers on any sample.
        needs: memory is an estimate: weights as the file has them and as kernels pack them, and
            the largest set of live tensors.
        timing, float_timing: of this artefact and of its float parent, taken side by side; None
            where it did not run on the machine it is for.
        reasons: why it must not ship; empty where it may.
    """

    scheme: str
    precision: str
    path: Path
    engine: EngineSpec
    evidence: Evidence
    options: dict[str, Any]
    answers: Answers
    needs: Needs
    operators: dict[str, int]
    size_bytes: int
    evaluation: Evaluation | None = None
    largest_error: float = 0.0
    timing: Timing | None = None
    float_timing: Timing | None = None
    reasons: tuple[str, ...] = ()

    @property
    def quantised(self) -> bool:
        return self.precision.startswith("int8")

    @property
    def speedup(self) -> float | None:
        """Against the float parent."""
        if self.timing is None or self.float_timing is None:
            return None
        return speedup(self.float_timing, self.timing)

    @property
    def figures(self) -> Figures:
        """What the gate judges."""
        found = self.evaluation
        return Figures(
            size_bytes=self.size_bytes,
            finite=found is None or found.finite,
            agreement=found.agreement if found else None,
            drop=found.metric.drop if found else None,
            speedup=self.speedup,
            latency_ms=self.timing.p50_ms if self.timing else None,
            memory_mb=self.needs.memory_mb,
        )

    @property
    def closeness(self) -> float | None:
        """Agreement with the source, or one minus the drop of the metric without classes."""
        if self.evaluation is None:
            return None
        agreement = self.evaluation.agreement
        return 1.0 - self.evaluation.metric.drop if agreement is None else agreement


def graph_facts(path: Path) -> tuple[Needs, dict[str, int]]:
    """What a board must offer the file, and its operators."""
    weights_bytes = 2 * path.stat().st_size
    if path.suffix != ".onnx":
        counts = operator_counts(TfliteSource(path, ""))
        return Needs(memory_mb=_megabytes(weights_bytes)), counts
    model = onnx.load_model(path)
    peak_bytes = peak_activation_bytes(model) or 0
    needs = Needs(
        memory_mb=_megabytes(weights_bytes + peak_bytes),
        onnx_ir=model.ir_version,
        opset=opset_of(model),
    )
    return needs, operators(model)


def _megabytes(size_bytes: int) -> int:
    return -(-size_bytes // 1_000_000)
