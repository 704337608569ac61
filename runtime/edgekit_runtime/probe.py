"""Probe: an engine must reproduce a bundle's golden outputs here before a variant serves, and do so
within the time and memory that the manifest allows.

Outputs made on another instruction set round differently, so nothing but the manifest's tolerances
decides: `atol`/`rtol` against the variant's own outputs, `reference_atol` against the source's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import GOLDEN_INPUTS, GOLDEN_REFERENCE, Bundle
from edgekit.errors import GoldenMismatch
from edgekit.manifest import Limits, Variant
from edgekit_runtime.engines import Session
from edgekit_runtime.engines.batches import count_samples, iter_batches, run_all
from edgekit_runtime.limits import Footprint, check_latency, check_memory
from edgekit_runtime.pictures_probe import probe_pictures

Arrays = Mapping[str, NDArray[Any]]

_NO_LIMITS = Limits()
_UNSEEN = Footprint(None)


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found.

    Attributes:
        samples: golden inputs that were run.
        own_error: largest absolute difference by output from the variant's own golden outputs;
            `None` where the bundle holds none, because nothing executed the variant at build.
        reference_error: the same from the source model's outputs.
        latency_ms: median time of one sample within the engine, on this machine.
        memory_mb: that the open model holds; `None` where the manifest sets no limit.
        pictures: golden pictures that came to their golden answers; None where there are none, or
            this machine cannot decode them.
    """

    samples: int
    own_error: dict[str, float] | None
    reference_error: dict[str, float]
    latency_ms: float
    pictures: int | None = None
    memory_mb: float | None = None


def probe(
    bundle: Bundle,
    variant: Variant,
    session: Session,
    *,
    limits: Limits = _NO_LIMITS,
    footprint: Footprint = _UNSEEN,
) -> ProbeResult:
    """Run every golden input, one sample at a time as a request does, and compare; then pictures.

    Args:
        limits: what the variant may cost here.
        footprint: of this process before the session was opened.

    Raises:
        GoldenMismatch: an output differs by more than the tolerance; the message names the output,
            the index and the two values, or the picture and what differs.
        LatencyExceeded: it is slower than the limit.
        MemoryExceeded: it holds more memory than the limit.
        DataError: the golden inputs are not inputs of this model.
        EngineError: the engine refused.
    """
    inputs = bundle.tensors(GOLDEN_INPUTS)
    golden = variant.golden
    got = run_all(session, inputs, max_batch=1)
    what = f"variant {variant.name}"
    own_error = None
    if golden.outputs is not None:
        assert golden.atol is not None
        assert golden.rtol is not None
        own = bundle.tensors(golden.outputs)
        own_error = compare(got, own, atol=golden.atol, rtol=golden.rtol, what=what)
    reference = bundle.tensors(GOLDEN_REFERENCE)
    reference_error = compare(
        got, reference, atol=golden.reference_atol, rtol=0.0, what=f"{what} against the source"
    )
    pictures = probe_pictures(bundle, variant, session)
    # Last, when everything has run that makes engines take memory.
    latency_ms = check_latency(variant, session, inputs, limits)
    return ProbeResult(
        samples=count_samples(session.inputs, inputs),
        own_error=own_error,
        reference_error=reference_error,
        latency_ms=_latency_ms(session, inputs) if latency_ms is None else latency_ms,
        pictures=pictures,
        memory_mb=check_memory(variant, session, limits, footprint),
    )


def compare(got: Arrays, want: Arrays, *, atol: float, rtol: float, what: str) -> dict[str, float]:
    """Largest absolute difference by output, raising `GoldenMismatch` for the worst one too large.

    A value fits where |got - want| <= atol + rtol * |want|, or both are the same infinity or NaN.
    """
    if missing := sorted(set(want) - set(got)):
        raise GoldenMismatch(
            f"{what}: the engine gives no output {missing[0]!r}, it gives {', '.join(sorted(got))}"
        )
    return {
        name: _compare_one(name, got[name], want[name], atol=atol, rtol=rtol, what=what)
        for name in sorted(want)
    }


def _compare_one(
    name: str, got: NDArray[Any], want: NDArray[Any], *, atol: float, rtol: float, what: str
) -> float:
    if got.shape != want.shape:
        raise GoldenMismatch(
            f"{what}: output {name!r} has shape {list(got.shape)}, golden is {list(want.shape)}"
        )
    if got.size == 0:
        return 0.0
    ours, golden = got.astype(np.float64), want.astype(np.float64)
    same = (ours == golden) | (np.isnan(ours) & np.isnan(golden))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(ours - golden))
        excess = np.where(same, 0.0, error - (atol + rtol * np.abs(golden)))
    # A NaN or infinity on one side only is as wrong as can be, whatever the tolerance.
    broken = ~same & ~(np.isfinite(ours) & np.isfinite(golden))
    excess[broken] = error[broken] = np.inf
    worst = int(excess.argmax())
    if excess.flat[worst] > 0:
        index = [int(i) for i in np.unravel_index(worst, got.shape)]
        raise GoldenMismatch(
            f"{what}: output {name!r} at {index} is {ours.flat[worst]:.6g}, golden is"
            f" {golden.flat[worst]:.6g}; they may differ by {atol:g} + {rtol:g} of it",
            hint="this engine or accelerator does not compute what was built; do not serve it",
        )
    return float(error.max())


def _latency_ms(session: Session, inputs: Arrays) -> float:
    times: list[int] = []
    for sample in iter_batches(session.inputs, inputs, size=1):
        start = time.perf_counter_ns()
        session.run(sample)
        times.append(time.perf_counter_ns() - start)
    return median(times) / 1e6
