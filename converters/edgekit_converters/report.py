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
from edgekit_converters.passes import Step
from edgekit_converters.typed import Typed

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
        proven: whether the data shows, with 95 % confidence, that it keeps within the budget.
        unproven: what the data cannot show.
        warnings: what a reader should know, though the budget does not forbid it.
        scheme: how it was made; `steps` as a recipe can repeat it.
        memory_mb: an estimate from sizes: weights twice, and peak activations.
        estimated_ms: latency by the tool chain's own model of the hardware; None where it has none.
        rerun_in: version of the engine, as the profile pins it, in which the golden samples were
            answered too; None where the engine here has it, or where that was not tried.
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
    unproven: tuple[str, ...]
    scheme: str
    steps: tuple[Step, ...]
    memory_mb: int
    warnings: tuple[str, ...] = ()
    estimated_ms: float | None = None
    rerun_in: str | None = None


class Rejected(Strict, frozen=True, kw_only=True):
    """A scheme that was tried or asked for, and does not ship."""

    scheme: str
    reason: str
    engine: str | None = None
    speedup: float | None = None
    agreement: float | None = None


class Tried(Strict, frozen=True, kw_only=True):
    """A scheme that the search made, in the order in which it was made.

    All figures come from the selection samples, by which the search chose; what ships is reported
    on others.

    Attributes:
        noise: power of the error of its answers over their own.
        probe: made to see what one block of the model does to the answers; never timed.
        chosen: it ships.
        pareto: nothing that was accepted is both faster and closer to the float model.
        reasons: why it does not ship; empty where another one ranked before it.
    """

    scheme: str
    engine: str
    precision: str | None
    size_bytes: int | None
    speedup: float | None
    agreement: float | None
    drop: float | None
    noise: float | None
    probe: bool
    chosen: bool
    pareto: bool
    reasons: tuple[str, ...]


class DataReport(Strict, frozen=True, kw_only=True):
    """How many samples did what."""

    origin: str
    calibration: int
    selection: int
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
    tried: tuple[Tried, ...] = ()
    truncated: bool = False
    notes: tuple[str, ...] = ()


class OperatorUse(Strict, frozen=True, kw_only=True):
    """All nodes of one type.

    Attributes:
        macs: multiply-accumulates of one sample; None where the format does not tell.
        int8_macs: those of them that are done in 8 bits.
        unknown: nodes whose shapes are not known, and whose MACs are not counted.
    """

    operator: str
    nodes: int
    macs: int | None = None
    int8_macs: int | None = None
    unknown: int = 0


class VariantDetail(Strict, frozen=True, kw_only=True):
    """What the plots of a report are drawn from.

    Attributes:
        providers: what the engine runs nodes with on the board, in the order it prefers; empty
            where the engine has but one way.
        operators: of the artefact, those that do most work first.
    """

    name: str
    evaluation: Evaluation | None
    timing: Timing | None
    providers: tuple[str, ...] = ()
    operators: tuple[OperatorUse, ...] = ()


class BlockEffect(Strict, frozen=True, kw_only=True):
    """One block of the model, consecutive nodes, and what its probe showed.

    Attributes:
        share: of the model's multiply-accumulates.
        noise: power of the error of the answers over their own, with this block alone in float, or
            alone not in float; None where it was not probed.
        kept_by: variants that ship with the whole block in float.
    """

    share: float
    nodes: int
    first: str
    last: str
    noise: float | None
    kept_by: tuple[str, ...]


class Study(Strict, frozen=True, kw_only=True):
    """The probes of one scheme.

    Attributes:
        noise: of the scheme itself, with no block in float.
        alone: each probe changed its block alone, and left all others in float.
        blocks: in running order.
    """

    engine: str
    scheme: str
    noise: float | None
    alone: bool
    blocks: tuple[BlockEffect, ...]


class Details(Strict, frozen=True, kw_only=True):
    """`reports/measurements.json`: everything that was measured, unrounded.

    Attributes:
        studies: what leaving single blocks in float did, where the search asked.
        digests: sha256 of what went in, as `provenance.json` has them: source, data, profile,
            recipe, tool-lock.
        command: what was typed after `edgekit build`, in pieces; empty where nothing was.
    """

    variants: tuple[VariantDetail, ...]
    machine: str
    load_average: tuple[float, float, float]
    tools: dict[str, str]
    studies: tuple[Study, ...] = ()
    digests: dict[str, str] = {}
    command: Typed = ()


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


def available_bytes() -> int:
    """Memory that this machine can give without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith("MemAvailable:")]
    return int(found.split()[1]) << 10


def load_average() -> tuple[float, float, float]:
    """Processes that wanted to run, over 1, 5 and 15 minutes: how busy the machine was."""
    return os.getloadavg()


def _text(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")
