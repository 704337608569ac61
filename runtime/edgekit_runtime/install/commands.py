"""Commands: `edgekit device install` and `wheelhouse`. Results go to stdout, errors to stderr."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command("install")
@click.option(
    "--config",
    type=_PATH,
    default=Path("/etc/edgekit/device.toml"),
    show_default=True,
    help="The device's configuration.",
)
@click.option("--state", type=_PATH, help="The one folder that the daemon writes to.")
@click.option("--user", default="edgekit", show_default=True, help="Whom the daemon runs as.")
@click.option("--site", help="The site where the board stands.")
@click.option("--id", "device", metavar="ID", help="Its name there; the host's name by default.")
@click.option("--profile", help="The board's profile: a name, or a JSON file.")
@click.option("--trust", multiple=True, type=_PATH, help="A public key whose bundles may run.")
@click.option("--enrolled", is_flag=True, help="The board has an identity of its fleet.")
@click.option("--memory-mb", type=click.IntRange(min=64), help="What the service may take.")
@click.option("--program", type=_PATH, help="edgekitd on the board, if not beside this command.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/"),
    help="Install to the image of a board that is mounted here.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be written.")
@_json
def install(
    *,
    config: Path,
    state: Path | None,
    user: str,
    site: str | None,
    device: str | None,
    profile: str | None,
    trust: tuple[Path, ...],
    enrolled: bool,
    memory_mb: int | None,
    program: Path | None,
    root: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a systemd unit, a user, and a configuration for this board, or for its image.

    Starts nothing; the commands that do are printed. A file that somebody edited is kept, and the
    new text put beside it. Without --site, --id or --profile the configuration there is asked.

    Example: edgekit device install --site plant-1 --id press-3 --profile raspberry-pi-5
    """
    import msgspec

    from edgekit_runtime.install import board
    from edgekit_runtime.install.settings import Wishes

    target = board.Target(
        config=config,
        program=program or board.this_program(),
        user=user,
        root=root,
        memory_mb=memory_mb,
    )
    wishes = Wishes(
        site=site, device=device, profile=profile, state=state, trust=trust, enrolled=enrolled
    )
    found = board.install(target, wishes, dry_run=dry_run)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for file in found.files:
        beside = f", the new text is in {file.beside}" if file.beside else ""
        would = "would be " if dry_run and file.outcome in ("written", "replaced") else ""
        click.echo(f"{would}{file.outcome}  {file.path}{beside}")
    for note in found.notes:
        click.echo(f"note: {note}")
    click.echo("then:")
    for command in found.next:
        click.echo(f"  {command}")


@click.command("wheelhouse")
@click.option("--profile", required=True, help="The board's profile: a name, or a JSON file.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder that is not there yet, or empty.",
)
@click.option("--engine", "engines", multiple=True, help="Only these engines of the profile.")
@click.option("--extra", "extras", multiple=True, help="Further extras of edgekit-ml, as grpc.")
@click.option(
    "--wheels",
    "own",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A wheel of yours or the board's vendor, which is taken before any other.",
)
@click.option("--python", help="The board's Python, as 3.11, if not the profile's.")
@click.option(
    "--glibc", help="The board's C library, as 2.36, if not that of the profile's system."
)
@_json
def wheelhouse(
    *,
    profile: str,
    out: Path,
    engines: tuple[str, ...],
    extras: tuple[str, ...],
    own: tuple[Path, ...],
    python: str | None,
    glibc: str | None,
    as_json: bool,
) -> None:
    """Collect wheels for a board, which then installs without internet by install.sh.

    Runs on a workstation, and names what only the board's vendor has.

    Example: edgekit device wheelhouse --profile raspberry-pi-5 --out wheelhouse/
    """
    import msgspec

    from edgekit_runtime.install import wheelhouse as wheelhouses
    from edgekit_runtime.install.profiles import find
    from edgekit_runtime.install.wheels import Choice, goal

    choice = Choice(engines=engines, extras=extras, python=python, glibc=glibc)
    board = find(profile, folder=Path.cwd())
    found = wheelhouses.collect(goal(board, choice), profile=board, own=own, out=out)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(f"{len(found.wheels)} wheels, {found.size_bytes / 1e6:.1f} MB, for {found.target}")
    for missing in found.missing:
        click.echo(f"not here: {missing.what}: {missing.source}")
    click.echo(f"on the board: sh {out}/install.sh /opt/edgekit")
