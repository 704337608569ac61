"""Report: what was found as lines of at most 80 columns, in words where a number needs them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from edgekit_runtime.capacity.limits import Limits
from edgekit_runtime.capacity.plan import Plan
from edgekit_runtime.capacity.resources import RanOut, Usage
from edgekit_runtime.capacity.runs import Run
from edgekit_runtime.capacity.slo import Objective

WIDTH = 80
# Of the answers from the server's cache, more than this and the engine was not measured.
_CACHED_SHARE = 0.01
# Cores that other programs may use without being named.
_OTHER_CORES = 0.1
HEADER = f"{'load':>10} {'requests':>9} {'late':>7} {'failed':>7} {'p50':>9} {'p99':>9}   SLO"


def run_line(run: Run) -> str:
    """One run, below `HEADER`."""
    late = max(found.late_share for found in run.found)
    latency = run.latency_ms
    verdict = "void" if run.void and not run.met else "met" if run.met else "missed"
    return (
        f"{run.load:10.6g} {run.requests:9} {late:7.2%} {run.failed:7}"
        f" {_ms(latency['p50']):>9} {_ms(latency['p99']):>9}   {verdict}"
    )


def limits_text(
    found: Limits, objectives: Sequence[Objective], *, server_is_ours: bool
) -> list[str]:
    """The answer of `edgekit limits`."""
    slo = ", ".join(map(str, objectives))
    lines = [""]
    if found.at is None:
        lines += _wrapped(f"no rate meets {slo} here")
    else:
        lines += _wrapped(
            f"{found.rate_per_s:.4g} requests per second meet {slo}"
            f"{_confirmed(found.confirmed)}: p50 {_ms(found.at.latency_ms['p50'])},"
            f" p99 {_ms(found.at.latency_ms['p99'])}"
        )
    if found.above_per_s is not None:
        lines += _wrapped(f"{found.above_per_s:.4g} per second do not")
    lines += _ended(found.ran_out, found.void)
    lines += ["", "callers that wait for their answers:"]
    lines += [
        f"  {one.callers:3} x {one.batch:2} samples: {one.predictions_per_s:10.1f} predictions/s"
        + (f", {one.failed} requests failed" if one.failed else "")
        for one in found.throughput
    ]
    if found.above is not None:
        lines += ["", "at the first rate that is too high:", *_usage(found.above.usage)]
    lines += _caveats(found.at, found.above, server_is_ours=server_is_ours)
    return lines


def plan_text(found: Plan, objectives: Sequence[Objective], *, server_is_ours: bool) -> list[str]:
    """The answer of `edgekit plan`."""
    slo = ", ".join(map(str, objectives))
    verb = "fit" if found.fits else "do NOT fit"
    lines = [
        "",
        *_wrapped(f"{found.streams} streams of {found.rate_per_s:g} per second {verb} ({slo})"),
        *_wrapped(f"at most {found.most} do{_confirmed(found.confirmed)}"),
    ]
    if found.above is not None:
        lines += _wrapped(f"{found.above} do not")
    lines += _ended(found.ran_out, found.void)
    if found.beyond is not None:
        lines += ["", "with the first number that is too high:", *_usage(found.beyond.usage)]
    lines += _caveats(found.at, found.beyond, server_is_ours=server_is_ours)
    return lines


def _ended(ran_out: RanOut | None, void: Sequence[str]) -> list[str]:
    if void:
        return _wrapped(
            f"LOWER BOUND: {'; '.join(void)}. Leave the machine to this, give more --generators, or"
            " drive the server from another machine"
        )
    if ran_out is None:
        return _wrapped("nothing ran out: no load that is too high was run in the time given")
    return _wrapped(f"what ran out: {ran_out.resource}; {ran_out.why}")


def _usage(usage: Usage) -> list[str]:
    lines = []
    if usage.server_cores is not None:
        lines.append(
            f"  server      {usage.server_cores:6.2f} of {usage.cores_allowed:g} cores: main thread"
            f" {usage.loop_cores:.2f}, busiest other {usage.worker_cores:.2f}"
        )
    if usage.memory_bytes is not None:
        lines.append(
            f"  memory      {usage.memory_bytes / 2**20:6.0f} MB (PSS);"
            f" {usage.free_share:.0%} of the board's is free"
        )
    others = "others, the server too," if usage.server_cores is None else "other programs"
    return [
        *lines,
        f"  engine      {usage.engine_share:6.2f} running on average",
        f"  generators  {usage.generator_cores:6.2f} cores, waiting included;"
        f" {others} {usage.other_cores:.2f}",
        f"  sent        {usage.bytes_per_s / 1e6:6.1f} MB/s; {usage.rejected} requests turned away",
    ]


def _caveats(at: Run | None, above: Run | None, *, server_is_ours: bool) -> list[str]:
    """What makes the answer weaker than it looks."""
    notes = []
    if at is not None and not at.is_enough:
        notes.append(
            f"{at.requests} requests a run are too few to tell these percentiles; give more"
            " --seconds"
        )
    seen = [run for run in (at, above) if run is not None]
    if any(run.cached_share > _CACHED_SHARE for run in seen):
        notes.append(
            "the server answered repeated golden inputs from its cache: this is not the engine"
        )
    if server_is_ours and any(run.usage.other_cores > _OTHER_CORES for run in seen):
        notes.append("other programs ran on this machine at the same time")
    if not server_is_ours:
        notes.append("the server was started by somebody else: its CPU and memory are not known")
    return [line for note in notes for line in _wrapped(f"note: {note}")]


def _confirmed(confirmed: bool) -> str:
    return ", in repeated runs" if confirmed else ", not confirmed in the time given"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
