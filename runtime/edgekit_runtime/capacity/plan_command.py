"""`edgekit plan`: how many streams a bundle can carry on this machine."""

from __future__ import annotations

import logging
import platform
import time
from pathlib import Path
from typing import Any

import click

from edgekit import logs
from edgekit.numbers import FloatRange
from edgekit_runtime.capacity.options import shared


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--streams", type=click.IntRange(1, 100_000), required=True, metavar="N")
@click.option(
    "--rate",
    type=FloatRange(0.01, 100_000),
    required=True,
    metavar="R",
    help="Requests per second of one stream.",
)
@click.option(
    "--slo",
    multiple=True,
    metavar="PERCENTILE=TIME",
    help="As for `edgekit limits`; default: p99 within one beat of a stream.",
)
@click.option(
    "--phases",
    type=click.Choice(["random", "aligned"]),
    default="random",
    show_default=True,
    help="Aligned: all streams at the same moment, as cameras that share a trigger.",
)
@shared
def plan(
    bundle: Path,
    streams: int,
    rate: float,
    slo: tuple[str, ...],
    phases: str,
    as_json: bool,
    seed: int,
    **how: Any,
) -> None:
    """Tell whether N streams of R requests per second fit on this machine, and how many do.

    Serves the bundle as `edgekit run` does and sends what so many cameras would: each at its own
    steady beat. Every number that is told was run, none is extrapolated. Exits with 0 whether or
    not the streams fit; the answer says which.

    Options after -- go to `edgekit run`.

    Example: edgekit plan lite0-0.1.0-raspberry-pi-5.edge --streams 4 --rate 15
    """
    import msgspec
    import numpy as np

    from edgekit_runtime.capacity import plan as rules
    from edgekit_runtime.capacity import report
    from edgekit_runtime.capacity import slo as objectives
    from edgekit_runtime.capacity.prepare import prepared

    logs.configure(json_lines=as_json, level=logging.WARNING)
    wanted = objectives.parse(slo) if slo else (objectives.one_beat(rate),)
    began_s = time.monotonic()
    with prepared(bundle, **how) as ready:
        variant = ready.target.variant()
        if not as_json:
            click.echo(f"{ready.target.model} {ready.target.version} ({variant}), streams:")
            click.echo(report.HEADER)
        found = rules.measure(
            ready,
            wanted,
            streams=streams,
            rate_per_s=rate,
            aligned=phases == "aligned",
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
            "phases": phases,
            "seconds": time.monotonic() - began_s,
            **msgspec.to_builtins(found),
        }
        click.echo(msgspec.json.encode(page).decode())
    else:
        lines = report.plan_text(found, wanted, server_is_ours=ready.target.pid is not None)
        click.echo("\n".join(lines))
