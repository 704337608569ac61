"""Artefact: one model file that was made for one engine, with all that was found out about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import onnx

from edgekit.drift.reference import Part
from edgekit.manifest import Needs
from edgekit.profile import EngineSpec, Evidence
from edgekit_converters.evaluate import Evaluation
from edgekit_converters.gate import Figures, Verdict
from edgekit_converters.golden_pictures import Slack
from edgekit_converters.inspect import operators, peak_activation_bytes
from edgekit_converters.measure import Timing, speedup
from edgekit_converters.normalise import opset_of
from edgekit_converters.passes import Scheme
from edgekit_converters.pinned import Rerun
from edgekit_converters.source import TfliteSource
from edgekit_converters.targets import Product
from edgekit_converters.targets.litert import operator_counts
from edgekit_converters.workshop import Arrays

_READABLE = frozenset({".onnx", ".tflite"})


@dataclass(frozen=True)
class Made:
    """An artefact that was made, run on the evaluation samples and measured.

    Attributes:
        scheme: how it was made.
        product: the files that compiling gave, and what the tools said of them.
        options: what the board opens it with.
        evidence: what running it here proves about the board.
        golden: its answers to the golden samples on this machine.
        evaluation: against the source, on evaluation samples; None without them.
        largest_error: largest difference from the source's answers on any sample.
        rounding: of `golden.rounding_of`; None for an artefact in float.
        slack: of `golden_pictures.slack`.
        answered: how its answers lay on the evaluation samples; None without them.
        needs: memory is an estimate: weights as the file has them and as kernels pack them, and
            the largest set of live tensors.
        timing, float_timing: of this artefact and of its float parent, taken side by side; None
            where it did not run on the machine it is for.
        verdict: what the gate says.
        rerun: what the board's version of the engine did with it.
    """

    scheme: Scheme
    precision: str
    product: Product
    engine: EngineSpec
    evidence: Evidence
    options: dict[str, Any]
    golden: Arrays
    needs: Needs
    operators: dict[str, int]
    size_bytes: int
    evaluation: Evaluation | None = None
    largest_error: float = 0.0
    rounding: float | None = None
    slack: Slack | None = None
    answered: Part | None = None
    timing: Timing | None = None
    float_timing: Timing | None = None
    verdict: Verdict = field(default_factory=Verdict)
    rerun: Rerun = field(default_factory=Rerun)

    @property
    def path(self) -> Path:
        """The file that ships."""
        return self.product.path

    @property
    def graph(self) -> Path:
        """The file whose operators say most of what the artefact computes."""
        return _graph(self.product) or self.product.path

    @property
    def speedup(self) -> float | None:
        """Against the float parent."""
        if self.timing is None or self.float_timing is None:
            return None
        return speedup(self.float_timing, self.timing)

    @property
    def figures(self) -> Figures:
        """What the gate judges."""
        return figures(
            self.evaluation,
            size_bytes=self.size_bytes,
            memory_mb=self.needs.memory_mb,
            speedup=self.speedup,
            latency_ms=self.timing.p50_ms if self.timing else None,
        )


def figures(
    found: Evaluation | None,
    *,
    size_bytes: int,
    memory_mb: float,
    speedup: float | None,
    latency_ms: float | None,
) -> Figures:
    """What the gate judges, from what was evaluated and measured."""
    return Figures(
        size_bytes=size_bytes,
        finite=found is None or found.finite,
        samples=found.samples if found else 0,
        agreement=found.agreement if found else None,
        agreement_low=found.agreement_low if found else None,
        drop=found.metric.drop if found else None,
        drop_high=found.drop_high if found else None,
        classes=found.classes if found else (),
        speedup=speedup,
        latency_ms=latency_ms,
        memory_mb=memory_mb,
    )


def graph_facts(product: Product) -> tuple[Needs, dict[str, int]]:
    """What a board must offer an artefact, and the operators of the graph that it was made from."""
    path = product.path
    graph = _graph(product)
    weights_bytes = 2 * path.stat().st_size
    if graph is None:
        return Needs(memory_mb=_megabytes(weights_bytes)), {}
    if graph.suffix != ".onnx":
        counts = operator_counts(TfliteSource(graph, ""))
        return Needs(memory_mb=_megabytes(weights_bytes)), counts
    model = onnx.load_model(graph)
    peak_bytes = peak_activation_bytes(model) or 0
    needs = Needs(memory_mb=_megabytes(weights_bytes + peak_bytes))
    if graph == path:
        needs = msgspec.structs.replace(needs, onnx_ir=model.ir_version, opset=opset_of(model))
    return needs, operators(model)


def _graph(product: Product) -> Path | None:
    files = (product.stand_in, product.path)
    return next((file for file in files if file and file.suffix in _READABLE), None)


def _megabytes(size_bytes: int) -> int:
    return -(-size_bytes // 1_000_000)
