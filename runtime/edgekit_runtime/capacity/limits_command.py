"""`edgekit limits`: what rate a bundle can carry on this machine."""

from __future__ import annotations

import logging
import platform
import time
from pathlib import Path
from typing import Any

import click

from edgekit import logs
from edgekit_runtime.capacity.options import shared


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--slo",
    multiple=True,
    required=True,
    metavar="PERCENTILE=TIME",
    help="Such as p99=50ms or p50=800us,p99.9=0.2s; p50, p90, p95, p99 and p99.9 may be given.",
)
@shared
def limits(bundle: Path, slo: tuple[str, ...], as_json: bool, seed: int, **how: Any) -> None:
    """Find the highest rate at which a bundle meets its SLO on this machine.

    Serves the bundle as `edgekit run` does, in a process of its own, and sends its golden inputs at
    random times (Poisson), whatever became of earlier requests. Latency counts from when a request
    was due; one that fails or is turned away is late. Rates are searched by bisection, and both
    ends of the last interval run again. Says which resource ran out, and when that was the load
    generator.

    Options after -- go to `edgekit run`.

    Example: edgekit limits lite0-0.1.0-generic-x86_64.edge --slo p99=50ms -- --workers thread
    """
    import msgspec
    import numpy as np

    from edgekit_runtime.capacity import limits as rules
    from edgekit_runtime.capacity import report
    from edgekit_runtime.capacity import slo as objectives
    from edgekit_runtime.capacity.prepare import prepared

    logs.configure(json_lines=as_json, level=logging.WARNING)
    wanted = objectives.parse(slo)
    began_s = time.monotonic()
    with prepared(bundle, **how) as ready:
        variant = ready.target.variant()
        if not as_json:
            click.echo(f"{ready.target.model} {ready.target.version} ({variant}), requests/s:")
            click.echo(report.HEADER)
        found = rules.measure(
            ready,
            wanted,
            seconds=how["seconds"],
            random=np.random.default_rng(seed),
            told=lambda run: None if as_json else click.echo(report.run_line(run)),
        )
    if as_json:
        page = {
            "bundle": str(bundle),
            "name": ready.target.model,
            "version": ready.target.version,
            "variant": variant,
            "machine": platform.machine(),
            "slo": [str(objective) for objective in wanted],
            "seconds": time.monotonic() - began_s,
            "predictions_per_s": found.predictions_per_s,
            **msgspec.to_builtins(found),
        }
        click.echo(msgspec.json.encode(page).decode())
    else:
        lines = report.limits_text(found, wanted, server_is_ours=ready.target.pid is not None)
        click.echo("\n".join(lines))
