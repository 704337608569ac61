"""Command: `edgekit doctor`. Findings go to stdout, steps and errors to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import click
import msgspec

from edgekit import profile as profiles_
from edgekit.errors import BuildError, EdgekitError
from edgekit.structs import Strict


class Installed(Strict, frozen=True, kw_only=True):
    """How the installation of one tool chain ended; `error` is None where it is ready."""

    name: str
    seconds: float
    error: str | None = None
    hint: str | None = None


@click.command()
@click.option(
    "--install",
    "wanted",
    multiple=True,
    metavar="TOOLCHAIN",
    help="Make a tool chain ready in an environment of its own, then report.",
)
@click.option("--profile", "names", multiple=True, help="Only this board, by name or file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(wanted: tuple[str, ...], names: tuple[str, ...], as_json: bool) -> None:
    """Show what this machine can build, run and prove for each board, and what adds more.

    Example: edgekit doctor --profile rk3588 --install rknn
    """
    from edgekit_converters import doctor as checkups
    from edgekit_converters import doctor_tables
    from edgekit_converters.console import Console
    from edgekit_converters.toolchains import toolchain

    chains = [toolchain(name).name for name in dict.fromkeys(wanted)]
    boards = [profiles_.find(name) for name in dict.fromkeys(names or profiles_.names())]
    with Console(quiet=as_json).steps() as say:
        installed = [_installed(name, say=say) for name in chains]
        say("looking at engines, tool chains and boards")
        found = checkups.examine(boards)
    if as_json:
        document = {"installed": installed, **msgspec.structs.asdict(found)}
        click.echo(msgspec.json.encode(document).decode())
    else:
        doctor_tables.show(found)
    _finish(installed)


def _installed(name: str, *, say: Callable[[str], None]) -> Installed:
    """Install one; what goes wrong is kept for the end, so that the others are installed too."""
    from edgekit_converters.toolchains import installation

    begun = time.monotonic()
    try:
        installation.install(name, say=say)
    except EdgekitError as e:
        seconds = round(time.monotonic() - begun, 1)
        return Installed(name=name, seconds=seconds, error=e.message, hint=e.hint)
    seconds = round(time.monotonic() - begun, 1)
    say(f"{name}: ready after {seconds:g} s")
    return Installed(name=name, seconds=seconds)


def _finish(installed: Sequence[Installed]) -> None:
    failed = [one for one in installed if one.error is not None]
    if failed:
        raise BuildError("; ".join(str(one.error) for one in failed), hint=failed[0].hint)
