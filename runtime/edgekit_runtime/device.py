"""Commands of a board: `edgekitd`, and `edgekit device` for whoever stands before it.

Both read the same configuration; `device` looks at the state folder and needs no running daemon.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.errors import UsageError
from edgekit_runtime.config import DEFAULT_PATH
from edgekit_runtime.doctor.command import doctor
from edgekit_runtime.enroll_command import enroll
from edgekit_runtime.install.commands import install, wheelhouse

if TYPE_CHECKING:
    from edgekit_runtime.config import Config

_config = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_PATH,
    show_default=True,
    help="The device's configuration.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_config
def daemon(path: Path) -> None:
    """Serve what is installed, report, update and train, until SIGTERM.

    Logs are JSON lines on stderr.

    Example: edgekitd --config /etc/edgekit/device.toml
    """
    from edgekit import logs
    from edgekit_runtime import config
    from edgekit_runtime.daemon import serve
    from edgekit_runtime.notify import Notifier

    with closing(Notifier.from_environment()) as notifier, notifier.telling_failure():
        settings = config.read(path)
        logs.configure(json_lines=True)
        serve(settings, path=path, notifier=notifier)


@click.group()
def device() -> None:
    """A board's own view.

    Example: edgekit device status
    """


device.add_command(enroll)
device.add_command(doctor)
device.add_command(install)
device.add_command(wheelhouse)


@device.command()
@_config
@_json
def status(path: Path, as_json: bool) -> None:
    """Show what each slot holds, what serves and how the latest update went.

    Example: edgekit device status --config /etc/edgekit/device.toml --json
    """
    from edgekit_runtime import config
    from edgekit_runtime.reach import reaching

    settings = config.read(path)
    with reaching(settings.state.folder):
        found = _status(settings)
    if as_json:
        click.echo(json.dumps(found))
        return
    running = "running" if found["running"] else "not running"
    click.echo(f"{found['site']}/{found['device']} ({found['profile']}), daemon {running}")
    if (link := found["link"]) is not None:
        why = "" if link["up"] else f" ({link['reason']}: {link['detail']})"
        click.echo(f"link {'up' if link['up'] else 'down'}{why}")
    for name, model in found["models"].items():
        held = model["version"] or "nothing"
        previous = f", before it {model['previous']}" if model["previous"] else ""
        click.echo(f"{name}: {held} in slot {model['slot'] or '-'}{previous}")
        if model["target"]:
            reason = f" ({model['reason']}: {model['detail']})" if model["reason"] else ""
            click.echo(f"  update to {model['target']}: {model['state']}{reason}")
    if not found["models"]:
        click.echo("no model is installed")


@device.command()
@_config
@_json
@click.argument("model")
def rollback(path: Path, as_json: bool, model: str) -> None:
    """Go back to the version of MODEL that served before.

    Leaves a request in the state folder; the daemon answers it within seconds, or at its next
    start. The version that is left is not fetched again until the fleet wants something new.

    Example: edgekit device rollback lite0
    """
    from edgekit_runtime import config
    from edgekit_runtime.lock import is_running
    from edgekit_runtime.reach import reaching
    from edgekit_runtime.slots import Slots

    state = config.read(path).state.folder
    slots = Slots(state)
    with reaching(state, writes=True):
        if model not in slots.names():
            raise UsageError(
                f"no model {model!r} is installed", hint="edgekit device status lists all"
            )
        record = slots.read(model)
        if record.previous is None:
            raise UsageError(f"{model} has no version to go back to")
        version = record.slots[record.previous].version
        slots.ask(model, "rollback")
        found = {"model": model, "version": version, "running": is_running(state)}
    if as_json:
        click.echo(json.dumps(found))
    else:
        when = "now" if found["running"] else "at the daemon's next start"
        click.echo(f"{model} goes back to {version} {when}")


@device.command()
@_config
@_json
@click.argument("model")
def cancel(path: Path, as_json: bool, model: str) -> None:
    """End the update of MODEL that is under way; what serves goes on serving.

    Leaves a request in the state folder; the daemon answers it within seconds, or at its next
    start. The bundle is not fetched again until the fleet wants something new.

    Example: edgekit device cancel lite0
    """
    from edgekit_runtime import config, update
    from edgekit_runtime.lock import is_running
    from edgekit_runtime.reach import reaching
    from edgekit_runtime.slots import Slots

    state = config.read(path).state.folder
    slots = Slots(state)
    with reaching(state, writes=True):
        record = slots.read(model) if model in slots.names() else None
        if record is None or record.update is None or record.state not in update.REPLACEABLE:
            raise UsageError(
                f"no update of {model!r} is under way", hint="edgekit device status lists all"
            )
        slots.ask(model, "cancel")
        version = record.update.wanted.version
        found = {"model": model, "version": version, "running": is_running(state)}
    if as_json:
        click.echo(json.dumps(found))
    else:
        when = "now" if found["running"] else "at the daemon's next start"
        click.echo(f"the update of {model} to {version} ends {when}")


def _status(settings: Config) -> dict[str, Any]:
    import msgspec

    from edgekit_runtime import linkage
    from edgekit_runtime.lock import is_running
    from edgekit_runtime.slots import Slots

    slots = Slots(settings.state.folder)
    models: dict[str, Any] = {}
    for name in slots.names():
        record = slots.read(name)
        update = record.update
        previous = record.slots[record.previous].version if record.previous else None
        models[name] = {
            "version": record.serving.version if record.serving else None,
            "digest": record.serving.digest if record.serving else None,
            "slot": record.active,
            "previous": previous,
            "state": record.state.value,
            "target": update.wanted.version if update else None,
            "reason": update.reason.value if update and update.reason else None,
            "detail": update.detail if update else None,
            "figures": update.figures if update else {},
        }
    running = is_running(settings.state.folder)
    # What a daemon that has ended wrote last says nothing about now.
    link = linkage.read(settings.state.folder) if settings.fleet and running else None
    return {
        "site": settings.device.site,
        "device": settings.device.id,
        "profile": settings.device.profile,
        "running": running,
        "link": msgspec.to_builtins(link),
        "models": models,
    }
