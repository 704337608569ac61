"""Bench: latency, throughput and memory of models on this machine, side by side.

Runs are interleaved: in each round every model runs once, so that whatever else the machine does
falls on all of them alike. Ratios of one run mean something; absolute times of two runs do not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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
        memory_bytes: growth of this process's PSS from opening it to its first answer; what
            subjects opened before have loaded (the engine itself, say) is counted once, there.
    """

    label: str
    engine: str
    session: Session
    inputs: Tensors
    memory_bytes: int


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Something that cannot run here."""

    label: str
    reason: str


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one subject did. Percentiles are of single runs, in milliseconds."""

    label: str
    engine: str
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_second: float
    memory_mb: float


def open_model(path: Path) -> Subject:
    """A model file with random inputs, dynamic sizes taken as 1."""
    engine = SUFFIXES.get(path.suffix)
    if engine is None:
        raise UsageError(
            f"{path} is neither a bundle nor a model that an engine here reads",
            hint=f"name a .edge file, or one of {', '.join(sorted(SUFFIXES))}",
        )
    before = pss_bytes()
    session = ENGINES.get(engine).open(path, options={})
    random = np.random.default_rng(0)
    inputs = {spec.name: _random(spec, random) for spec in session.inputs}
    session.run(inputs)
    return Subject(
        label=path.name,
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
            )
        )
    return found


def measure(subjects: Sequence[Subject], *, seconds: float, max_runs: int) -> list[Measured]:
    """Run all subjects in turn until `seconds` have passed, or each ran `max_runs` times."""
    times_ns: list[list[int]] = [[] for _ in subjects]
    with ExitStack() as stack:
        for subject in subjects:
            stack.callback(subject.session.close)
            for _ in range(WARM_UP_RUNS):
                subject.session.run(subject.inputs)
        until = time.monotonic() + seconds
        rounds = 0
        while rounds == 0 or (rounds < max_runs and time.monotonic() < until):
            for subject, times in zip(subjects, times_ns, strict=True):
                start = time.perf_counter_ns()
                subject.session.run(subject.inputs)
                times.append(time.perf_counter_ns() - start)
            rounds += 1
    return [summarise(subject, times) for subject, times in zip(subjects, times_ns, strict=True)]


def summarise(subject: Subject, times_ns: Sequence[int]) -> Measured:
    """Percentiles of single runs; throughput is of one caller that never pauses."""
    p50, p90, p99 = np.percentile(np.array(times_ns) / 1e6, (50, 90, 99))
    return Measured(
        label=subject.label,
        engine=subject.engine,
        runs=len(times_ns),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        per_second=len(times_ns) / (sum(times_ns) / 1e9),
        memory_mb=subject.memory_bytes / 2**20,
    )


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
