"""Report: what a build found, as the JSON object that `edgekit build --json` prints.

A figure that was not obtained is null. Latency and speed-up exist only where the artefact ran on
the machine it is for; each figure says by which evidence it is known.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec

from edgekit.profile import Accelerator, Evidence
from edgekit.structs import Strict
from edgekit_converters.evaluate import Evaluation, Interval, Metric
from edgekit_converters.gate import Gate
from edgekit_converters.measure import Timing

REPORT_JSON = "reports/report.json"
REPORT_HTML = "reports/report.html"
MEASUREMENTS = "reports/measurements.json"


class Latency(Strict, frozen=True, kw_only=True):
    """Milliseconds of one sample at batch 1."""

    p50: float
    p99: float


class PlacementReport(Strict, frozen=True, kw_only=True):
    """Where the model runs; None where nobody looked."""

    accelerator_macs: float | None
    fallback_ops: tuple[str, ...] | None


class FigureEvidence(Strict, frozen=True, kw_only=True):
    """By which evidence each figure is known; None where it was not obtained."""

    agreement: Evidence | None
    metric: Evidence | None
    max_abs_error: Evidence | None
    latency_ms: Evidence | None
    placement: Evidence | None


class VariantReport(Strict, frozen=True, kw_only=True):
    """One variant of the bundle.

    Attributes:
        proven: whether enough data judged it.
        scheme: how it was made.
        memory_mb: an estimate from sizes: weights twice, and peak activations.
    """

    name: str
    engine: str
    accelerator: Accelerator
    precision: str
    size_bytes: int
    latency_ms: Latency | None
    speedup: float | None
    speedup_quartiles: Interval | None
    agreement: float | None
    agreement_ci95: Interval | None
    metric: Metric | None
    max_abs_error: float | None
    placement: PlacementReport
    evidence: Evidence
    figure_evidence: FigureEvidence
    proven: bool
    scheme: str
    memory_mb: int


class Rejected(Strict, frozen=True, kw_only=True):
    """A scheme that was tried or asked for, and does not ship."""

    scheme: str
    reason: str
    engine: str | None = None
    speedup: float | None = None
    agreement: float | None = None


class DataReport(Strict, frozen=True, kw_only=True):
    """How many samples did what."""

    origin: str
    calibration: int
    golden: int
    evaluation: int
    groups: int


class BundleReport(Strict, frozen=True, kw_only=True):
    """An element of `bundles` in `edgekit build --json`."""

    path: Path | None
    profile: str
    name: str
    version: str
    digest: str | None
    variants: tuple[VariantReport, ...]
    rejected: tuple[Rejected, ...]
    gate: Gate
    measured_on: str
    report: Path | None
    seconds: float
    data: DataReport
    notes: tuple[str, ...] = ()


class VariantDetail(Strict, frozen=True, kw_only=True):
    """What the plots of a report are drawn from."""

    name: str
    evaluation: Evaluation | None
    timing: Timing | None
    operators: dict[str, int]


class Details(Strict, frozen=True, kw_only=True):
    """`reports/measurements.json`: everything that was measured, unrounded."""

    variants: tuple[VariantDetail, ...]
    machine: str
    load_average: tuple[float, float, float]
    tools: dict[str, str]


def encode(report: BundleReport, **more: object) -> bytes:
    """The object of the command line with further keys beside it."""
    tree = msgspec.to_builtins(report, enc_hook=_text)
    return msgspec.json.format(msgspec.json.encode({**tree, **more}, enc_hook=_text), indent=1)


def encode_details(details: Details) -> bytes:
    """The raw measurements as JSON."""
    return msgspec.json.encode(details)


def to_builtins(report: BundleReport) -> dict[str, object]:
    """The object of the command line as plain data."""
    tree: dict[str, object] = msgspec.to_builtins(report, enc_hook=_text)
    return tree


def machine() -> str:
    """This machine, in one line."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else ""
    return f"{platform.machine()} {model or platform.processor()}, {os.cpu_count()} cores".strip()


def load_average() -> tuple[float, float, float]:
    """Processes that wanted to run, over 1, 5 and 15 minutes: how busy the machine was."""
    return os.getloadavg()


def _text(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")
