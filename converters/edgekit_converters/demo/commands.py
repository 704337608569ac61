"""`edgekit demo`."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import click

from edgekit.errors import StorageError

_MARK = ".edgekit-demo"
_MINUTE_S = 60.0


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running at the end, until Ctrl-C.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for models, bundles, logs and state; what an earlier demo left there is replaced.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as one JSON document.")
def demo(keep: bool, out: Path, as_json: bool) -> None:
    """Tell the whole story on this machine: build, serve, fleet, rollout, federated rounds.

    Example: edgekit demo --keep
    """
    from edgekit_converters.demo import story
    from edgekit_converters.demo.processes import Processes

    folder = _empty(out.resolve())
    place = story.choose_place(folder)
    started = time.monotonic()

    def say(chapter: str, line: str) -> None:
        click.echo(f"{_clock(time.monotonic() - started)}  {chapter:<8} {line}", err=as_json)

    facts: dict[str, Any] = {}
    # A service manager ends a program with SIGTERM; the processes of the demo end with it too.
    signal.signal(signal.SIGTERM, _interrupt)
    with Processes(folder / "logs") as processes:
        story.prepare(place, processes, say)
        built = story.build(place, processes, say)
        bundle = Path(built[place.profile]["path"])
        facts["build"] = built
        facts["serve"] = story.serve(place, bundle, processes, say)
        story.start_fleet(place, processes, say)
        facts["rollout"] = story.roll_out(place, bundle, "1.0.0", processes, say)
        facts["refused"] = story.refuse_a_bad_version(place, bundle, processes, say)
        facts["learn"] = story.learn(place, processes, say)
        facts["seconds"] = round(time.monotonic() - started, 1)
        say("done", f"report    {built[place.profile]['report']}")
        if keep:
            say("done", f"dashboard {place.coordinator}/ (running; Ctrl-C ends the demo)")
            for number in range(1, story.DEVICES + 1):
                say("done", f"device-{number}  http://127.0.0.1:{place.device_port(number)}/v2")
        else:
            say("done", "dashboard edgekit demo --keep leaves it running and prints its address")
        if as_json:
            click.echo(json.dumps(facts))
        if keep:
            threading.Event().wait()


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _empty(folder: Path) -> Path:
    """An empty folder for the demo; only what a demo made is ever removed."""
    try:
        if folder.exists() and any(folder.iterdir()):
            if not (folder / _MARK).exists():
                raise StorageError(
                    f"{folder} is not empty and not of a demo", hint="--out names another folder"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()
    except OSError as e:
        raise StorageError(f"{folder} cannot be used: {e.strerror}") from e
    return folder


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, _MINUTE_S)
    return f"{minutes:.0f}:{rest:02.0f}"
