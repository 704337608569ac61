"""Console: `edgekit bench --device`, from its options to what is printed and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from edgekit.errors import UsageError
from edgekit.signing import SigningKey
from edgekit.structs import Strict
from edgekit.terminal import plain
from edgekit_runtime import bench
from edgekit_runtime.board import remote, report, ship
from edgekit_runtime.board.conditions import Reading
from edgekit_runtime.board.figures import BoardBench
from edgekit_runtime.opening import Opened

UNKNOWN = "not known"


class Options(Strict, frozen=True, kw_only=True):
    """The command's options, under their own names."""

    device: str
    seconds: float
    runs: int
    as_json: bool
    out: Path | None = None
    sign_key: Path | None = None
    remote_python: str | None = None
    wheels: Path | None = None
    ssh_config: Path | None = None
    max_clock_drop: float | None = None


def bench_there(
    bundles: Sequence[Path],
    models: Mapping[Path, str],
    *,
    opened: Callable[[Path], Opened],
    options: Options,
) -> None:
    """Run on a board, print what it did, and write it where that was asked for.

    Args:
        bundles: `.edge` files.
        models: model file to its engine.
        opened: opens a bundle that is trusted here, or raises.
        options: as given.

    Raises:
        EngineError: the run is void, after its figures were shown and written.
    """
    key = _checked(bundles, options)
    # The digest of a file first: what is opened after it and differs is refused on the board.
    pieces = [ship.file(path) for path in bundles]
    trusted = [opened(path) for path in bundles]
    try:
        if key is not None and trusted[0].verified_by is None:
            raise UsageError(
                f"{bundles[0]} is not signed by a trusted key, and --sign-key would make it so",
                hint="--trust PUBKEY names the key that signed it",
            )
        request = remote.Request(
            bundles=tuple(
                (piece, one.bundle.manifest) for piece, one in zip(pieces, trusted, strict=True)
            ),
            models=tuple((ship.file(path), engine) for path, engine in models.items()),
            seconds=options.seconds,
            runs=options.runs,
            max_clock_drop=(
                remote.MAX_CLOCK_DROP if options.max_clock_drop is None else options.max_clock_drop
            ),
            python=options.remote_python,
            wheels=tuple(sorted(options.wheels.glob("*.whl"))) if options.wheels else (),
        )
        found = remote.bench(options.device, request, say=_say, ssh_config=options.ssh_config)
        click.echo(report.encode(found).decode() if options.as_json else text(found))
        if options.out is not None:
            manifest = trusted[0].bundle.manifest
            _say(f"written: {report.write(found, manifest, options.out)}")
        if key is not None and options.out is not None:
            path = report.sign_into(trusted[0].bundle, found, key=key, folder=options.out)
            _say(f"written: {path}, the same digest under a new signature")
    finally:
        for one in trusted:
            one.bundle.close()
    report.check_valid(found)


def text(found: BoardBench) -> str:
    """The figures and their conditions for people."""
    lines = [f"executed on {found.board.title}", bench.table(found.results, found.skipped)]
    lines += [
        f"{one.label}: {one.samples} golden inputs reproduced, at most"
        f" {max(one.reference_error.values()):.2g} from the source model"
        for one in found.golden
    ]
    readings = (found.conditions.before, *found.conditions.during, found.conditions.after)
    heat = _span(readings, "temperatures_c", "°C")
    clocks = _span(readings, "clocks_mhz", "MHz")
    lines.append(f"heat {heat}, clock of the fastest core {clocks}")
    if clocks == UNKNOWN:
        lines.append("this board does not tell its clocks: whether they fell is not known")
    load = found.conditions.before.load
    if load is not None and load > found.board.cores / 2:
        lines.append(
            f"the board was busy with other work: load {load:g} on {found.board.cores} cores"
        )
    if found.conditions.power_mode:
        lines.append(f"power mode {found.conditions.power_mode}")
    lines += [f"NOT THE PROFILE'S BOARD: {reason}" for reason in found.mismatches]
    lines += [f"VOID: {reason}" for reason in found.void]
    # Much of this was said by the board.
    return "\n".join(plain(line) for text in lines for line in text.split("\n"))


def _span(readings: Sequence[Reading], field: str, unit: str) -> str:
    """The least and the most of each reading's highest value."""
    values = [max(found.values()) for found in (getattr(r, field) for r in readings) if found]
    if not values:
        return UNKNOWN
    return f"{min(values):.0f} to {max(values):.0f} {unit}"


def _checked(bundles: Sequence[Path], options: Options) -> SigningKey | None:
    """The key to sign with, once the options are known to fit together."""
    if options.out is not None and len(bundles) != 1:
        raise UsageError("--out is for one bundle", hint="models alone have no report; use --json")
    if options.sign_key is not None and options.out is None:
        raise UsageError("--sign-key needs --out FOLDER, where the signed bundle goes")
    if options.wheels is not None and options.remote_python is not None:
        raise UsageError("--remote-python carries no packages, so --wheels has no use")
    for path in bundles:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; a board gets the .edge file")
    return None if options.sign_key is None else SigningKey.read(options.sign_key)


def _say(line: str) -> None:
    click.echo(line, err=True)
