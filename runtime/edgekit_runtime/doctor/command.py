"""Command: `edgekit device doctor`. Findings go to stdout, the verdict to stderr."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("doctor")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/edgekit/device.toml"),
    show_default=True,
    help="The device's configuration.",
)
@click.option("--profile", help="Another profile than the configuration's: a name, or a JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(path: Path, profile: str | None, as_json: bool) -> None:
    """Hold this board against its profile, and say what mends what is missing or differs.

    Looks at engines, drivers, firmware, Python and its packages, the service, and the bundles in
    the slots, of which it says what would break if a driver changed. Changes nothing. Ends with 0
    where nothing is wrong, 4 for a bundle, 5 for an engine or driver, else 2.

    Example: edgekit device doctor --config /etc/edgekit/device.toml
    """
    import msgspec

    from edgekit.clock import SystemClock
    from edgekit_runtime import config
    from edgekit_runtime.doctor import belonging, examination, findings
    from edgekit_runtime.doctor.page import page
    from edgekit_runtime.reach import reaching

    state = config.StateSection().folder
    belongs: list[findings.Finding] = []
    if profile is None or path.exists():
        settings = config.read(path)
        state, profile = settings.state.folder, profile or settings.device.profile
        with reaching(state):
            belongs = list(belonging.findings(settings, now_ms=SystemClock().now_ms()))
    with reaching(state):
        board = examination.profile_for(profile, folder=path.parent, state=state)
        found = examination.examine(board, state=state, belongs=belongs)
    error = findings.verdict(found.findings)
    if as_json:
        document = {"ok": error is None, **msgspec.structs.asdict(found)}
        click.echo(msgspec.json.encode(document).decode())
    else:
        click.echo(page(found))
    if error is not None:
        raise error
