"""Bench: latency, throughput and memory of models on this machine, side by side.

Runs are interleaved: in each round every model runs once, so that whatever else the machine does
falls on all of them alike. Ratios of one run mean something; absolute times of two runs do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit.errors import EngineError, UsageError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines import ENGINES, Session, Tensors
from edgekit_runtime.engines.batches import iter_batches
from edgekit_runtime.engines.tensors import DTYPES

SUFFIXES = {".onnx": "onnxruntime", ".tflite": "litert"}
WARM_UP_RUNS = 3


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A session to measure, with inputs for one sample.

    Attributes:
        variant: name within its bundle; None for a bare model.
        memory_bytes: growth of this process's PSS from opening it to its first answer; what
            subjects opened before have loaded (the engine itself, say) is counted once, there.
    """

    label: str
    engine: str
    session: Session
    inputs: Tensors
    memory_bytes: int
    variant: str | None = None


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Something that cannot run here."""

    label: str
    reason: str


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one subject did. Percentiles are of single runs, in milliseconds.

    Attributes:
        variant: name within its bundle; None for a bare model.
        per_second: runs of one caller that never pauses.
        cpu_ms: processor time of one run, of all threads together, on average.
        memory_mb: growth of the process's PSS by opening and running it once.
    """

    label: str
    engine: str
    variant: str | None = None
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_second: float
    cpu_ms: float
    memory_mb: float


def engine_of(path: Path) -> str:
    """The engine that a bare model is for, by its suffix."""
    engine = SUFFIXES.get(path.suffix)
    if engine is None:
        raise UsageError(
            f"{path} is neither a bundle nor a model that an engine here reads",
            hint=f"name a .edge file, or one of {', '.join(sorted(SUFFIXES))}",
        )
    return engine


def open_model(path: Path, *, engine: str, label: str) -> Subject:
    """A model file with random inputs, dynamic sizes taken as 1."""
    before = pss_bytes()
    session = ENGINES.get(engine).open(path, options={})
    random = np.random.default_rng(0)
    inputs = {spec.name: _random(spec, random) for spec in session.inputs}
    session.run(inputs)
    return Subject(
        label=label,
        engine=engine,
        session=session,
        inputs=inputs,
        memory_bytes=pss_bytes() - before,
    )


def open_bundle(bundle: Bundle) -> list[Subject | Skipped]:
    """Every variant of a bundle, with its first golden input."""
    samples = bundle.tensors(GOLDEN_INPUTS)
    found: list[Subject | Skipped] = []
    manifest = bundle.manifest
    for variant in manifest.variants:
        label = f"{manifest.name} {manifest.version} {variant.name}"
        before = pss_bytes()
        try:
            engine = ENGINES.get(variant.engine)
            session = engine.open(bundle.artifact(variant), options=variant.options)
        except (EngineError, UsageError) as e:
            found.append(Skipped(label=label, reason=e.message))
            continue
        inputs = next(iter_batches(session.inputs, samples, size=1))
        session.run(inputs)
        found.append(
            Subject(
                label=label,
                engine=variant.engine,
                session=session,
                inputs=inputs,
                memory_bytes=pss_bytes() - before,
                variant=variant.name,
            )
        )
    return found


def measure(
    subjects: Sequence[Subject],
    *,
    seconds: float,
    max_runs: int,
    between: Callable[[], None] | None = None,
) -> list[Measured]:
    """Run all subjects in turn until `seconds` have passed, or each ran `max_runs` times.

    Args:
        subjects: their sessions are closed at the end.
        seconds: for all of them together, after a warm-up.
        max_runs: most runs of each.
        between: is called after each round, outside of what is timed.
    """
    times_ns: list[list[int]] = [[] for _ in subjects]
    cpu_ns = [0 for _ in subjects]
    with ExitStack() as stack:
        for subject in subjects:
            stack.callback(subject.session.close)
            for _ in range(WARM_UP_RUNS):
                subject.session.run(subject.inputs)
        until = time.monotonic() + seconds
        rounds = 0
        while rounds == 0 or (rounds < max_runs and time.monotonic() < until):
            for place, subject in enumerate(subjects):
                cpu_start = time.process_time_ns()
                start = time.perf_counter_ns()
                subject.session.run(subject.inputs)
                times_ns[place].append(time.perf_counter_ns() - start)
                cpu_ns[place] += time.process_time_ns() - cpu_start
            rounds += 1
            if between is not None:
                between()
    return [
        summarise(subject, times, cpu_ns=cpu)
        for subject, times, cpu in zip(subjects, times_ns, cpu_ns, strict=True)
    ]


def summarise(subject: Subject, times_ns: Sequence[int], *, cpu_ns: int) -> Measured:
    """Percentiles of single runs, and processor time of all of them as an average."""
    p50, p90, p99 = np.percentile(np.array(times_ns) / 1e6, (50, 90, 99))
    return Measured(
        label=subject.label,
        engine=subject.engine,
        variant=subject.variant,
        runs=len(times_ns),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        per_second=len(times_ns) / (sum(times_ns) / 1e9),
        cpu_ms=cpu_ns / len(times_ns) / 1e6,
        memory_mb=subject.memory_bytes / 2**20,
    )


def table(measured: Sequence[Measured], skipped: Sequence[Skipped]) -> str:
    """The figures for people, a line each."""
    width = max((len(one.label) for one in measured), default=0)
    lines = [
        f"{'':{width}}  {'p50':>9} {'p90':>9} {'p99':>9}  {'runs/s':>8}  {'CPU a run':>9}"
        f"  {'memory':>9}"
    ]
    lines += [
        f"{one.label:{width}}  {one.p50_ms:6.3f} ms {one.p90_ms:6.3f} ms {one.p99_ms:6.3f} ms"
        f"  {one.per_second:8.1f}  {one.cpu_ms:6.3f} ms  {one.memory_mb:6.1f} MB"
        for one in measured
    ]
    lines += [f"{one.label}: not run: {one.reason}" for one in skipped]
    return "\n".join(lines)


def pss_bytes() -> int:
    """Memory of this process, shared pages counted by their share."""
    for line in Path("/proc/self/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise EngineError("/proc/self/smaps_rollup has no Pss line")


def _random(spec: TensorSpec, random: np.random.Generator) -> NDArray[np.generic]:
    shape = [1 if size == -1 else size for size in spec.shape]
    dtype = DTYPES[spec.datatype]
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    # An integer is often an index, and 0 is one that always exists.
    return np.zeros(shape, dtype=dtype)
