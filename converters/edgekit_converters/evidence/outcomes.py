"""Outcomes: what the gate found of each variant that ships, one test a limit of the budget.

A limit that there was no figure for is no test: a latency that was never taken has neither passed
nor failed. What the data were too few to show is a warning, as the gate does not refuse it. Pure
functions over the figures and the rules of `gate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgekit.recipe import Budget
from edgekit_converters import gate
from edgekit_converters.artefact import Made
from edgekit_converters.evidence.statements import Result
from edgekit_converters.gate import Figures, Outcome

RESULTS: Mapping[Outcome, Result] = {
    "passed": "passed",
    "not_enough_data": "warned",
    "refused": "failed",
}
"""The outcome of a whole build, as a test result says it."""


def outcomes(variants: Mapping[str, Made], budget: Budget) -> dict[str, Result]:
    """Each test's result, by `VARIANT: what was tested`."""
    return {
        f"{name}: {what}": result
        for name, made in variants.items()
        for what, result in judged(made.figures, budget, is_float=not made.scheme.steps)
    }


def judged(
    figures: Figures, budget: Budget, *, is_float: bool = False
) -> Iterator[tuple[str, Result]]:
    """What was tested of one artefact, and the result; together they say what `gate.judge` says."""
    for what, alone in _limits(figures, budget, is_float=is_float):
        refused = gate.judge(alone, budget, is_float=is_float).refused
        yield what, "failed" if refused else "passed"
    if is_float:
        return
    for what, alone in _losses(figures):
        verdict = gate.judge(alone, budget)
        yield what, "failed" if verdict.refused else "passed" if verdict.proven else "warned"


def _limits(figures: Figures, budget: Budget, *, is_float: bool) -> Iterator[tuple[str, Figures]]:
    """What holds or does not, each as figures that say nothing else."""
    yield "answers are numbers", Figures(size_bytes=0, finite=figures.finite)
    if budget.max_size_mb is not None:
        yield "size", Figures(size_bytes=figures.size_bytes)
    if budget.max_latency_ms is not None and figures.latency_ms is not None:
        yield "latency", Figures(size_bytes=0, latency_ms=figures.latency_ms)
    if budget.max_memory_mb is not None and figures.memory_mb is not None:
        yield "memory", Figures(size_bytes=0, memory_mb=figures.memory_mb)
    if not is_float and figures.speedup is not None:
        yield "speed-up", Figures(size_bytes=0, speedup=figures.speedup)


def _losses(figures: Figures) -> Iterator[tuple[str, Figures]]:
    """What the data have to show; accuracy as a whole where nothing of it is known."""
    n = figures.samples
    agreement = Figures(
        size_bytes=0,
        samples=n,
        agreement=figures.agreement,
        agreement_low=figures.agreement_low,
    )
    drop = Figures(size_bytes=0, samples=n, drop=figures.drop, drop_high=figures.drop_high)
    if figures.agreement is not None:
        yield "agreement", agreement
    if figures.drop is not None:
        yield "accuracy drop", drop
    if figures.agreement is None and figures.drop is None:
        yield "accuracy", Figures(size_bytes=0)
