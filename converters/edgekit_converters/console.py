"""Console: what a person sees of a build: steps on stderr while it runs, a summary at the end.

On a terminal the current step spins; elsewhere each step is a plain line. With `--json` nothing is
shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import floor

from rich.console import Console as RichConsole

from edgekit_converters.bench import SOURCE
from edgekit_converters.report import BundleReport, VariantReport


class Console:
    """Where a build speaks.

    Args:
        quiet: say nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._steps = RichConsole(stderr=True, highlight=False)
        self._results = RichConsole(highlight=False)

    @contextmanager
    def steps(self) -> Iterator[Callable[[str], None]]:
        """A function that shows what is being done now."""
        if self._quiet:
            yield lambda _: None
        elif self._steps.is_terminal:
            with self._steps.status("starting") as status:
                yield status.update
        else:
            yield lambda text: self._steps.print(text, markup=False)

    def show(self, found: BundleReport) -> None:
        """The summary of one bundle."""
        title = f"{found.name} {found.version} for {found.profile}: gate {found.gate.outcome}"
        self._line(title, style="bold")
        for reason in found.gate.reasons:
            self._line(f"  {reason}")
        for variant in found.variants:
            self._line(f"  {variant.name:<10} {_described(variant)}")
        if found.tried:
            self._line(f"  search     {_search(found)}")
        for rejected in found.rejected:
            if rejected.scheme == SOURCE:
                # Of this engine of the board nothing is in the bundle, or nothing in float.
                self._line(f"  not made   {rejected.engine}: {rejected.reason}", style="yellow")
            else:
                self._line(f"  rejected   {rejected.scheme}: {rejected.reason}", style="dim")
        for note in found.notes:
            self._line(f"  note       {note}", style="dim")
        if found.path is not None and found.digest is not None:
            self._line(f"  bundle     {found.path}  {found.digest[:19]}…")
            self._line(f"  report     {found.report}")

    def _line(self, text: str, *, style: str | None = None) -> None:
        self._results.print(text, markup=False, style=style, soft_wrap=True)


def _search(found: BundleReport) -> str:
    probes = sum(tried.probe for tried in found.tried)
    made = len(found.tried) - probes
    text = f"{made} scheme{'' if made == 1 else 's'} made and measured"
    if probes:
        text += f", {probes} probes of single blocks"
    return text + (", ended by the time limit" if found.truncated else "")


def _described(variant: VariantReport) -> str:
    """A variant in one line: what it is, then each figure that was obtained."""
    latency, metric = variant.latency_ms, variant.metric
    parts = [
        f"{variant.precision} in {variant.engine} ({variant.accelerator})",
        f"{variant.size_bytes / 1e6:.2f} MB",
    ]
    if latency is not None:
        parts.append(f"p50 {latency.p50:.2f} ms, p99 {latency.p99:.2f} ms")
    elif variant.estimated_ms is not None:
        parts.append(f"about {variant.estimated_ms:.2f} ms by the tool's own estimate")
    if variant.speedup is not None and variant.scheme != SOURCE:
        parts.append(f"{variant.speedup:.2f}x float")
    if variant.agreement is not None:
        parts.append(f"agreement {variant.agreement:.3f}")
    if metric is not None and metric.name != "agreement":
        parts.append(f"{metric.name} {metric.value:.3f} (float {metric.float_value:.3f})")
    if variant.accelerator != "cpu" and variant.placement.accelerator_macs is not None:
        share = floor(variant.placement.accelerator_macs * 1000) / 10
        parts.append(f"{share:g} % of MACs on the {variant.accelerator}")
    parts.append(variant.evidence if variant.proven else f"{variant.evidence}, unproven")
    return " · ".join(parts)
