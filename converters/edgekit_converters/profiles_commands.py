"""Commands: `edgekit profiles`. Results go to stdout, errors to stderr."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click
import msgspec

from edgekit import profile as profiles_
from edgekit.errors import ProfileError

_FILE = click.Path(path_type=Path)


@click.group()
def profiles() -> None:
    """List, show and check device profiles.

    Example: edgekit profiles show jetson
    """


@profiles.command("list")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the README's table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_profiles(as_markdown: bool, as_json: bool) -> None:
    """List the boards that edgekit knows, and what was run for each.

    Example: edgekit profiles list
    """
    from rich.console import Console

    from edgekit_converters import boards

    found = [profiles_.find(name) for name in profiles_.names()]
    if as_json:
        _print({"profiles": found})
    elif as_markdown:
        click.echo(boards.markdown(found))
    else:
        Console(highlight=False).print(boards.table(found))


@profiles.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show_profile(name: str, as_json: bool) -> None:
    """Show one profile with `extends` applied; NAME is a name or a file.

    Example: edgekit profiles show raspberry-pi-5
    """
    import yaml

    found = profiles_.find(name)
    if as_json:
        _print(found)
    else:
        click.echo(yaml.safe_dump(msgspec.to_builtins(found), sort_keys=False), nl=False)


@profiles.command("lint")
@click.argument("files", nargs=-1, type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def lint_profiles(files: tuple[Path, ...], as_json: bool) -> None:
    """Check profiles; without FILES those that ship with edgekit.

    Example: edgekit profiles lint my-board.yaml
    """
    from edgekit_converters.lint import lint_file

    today = dt.datetime.now(dt.timezone.utc).date()
    chosen = files or [file for folder in profiles_.search_path() for file in folder.glob("*.yaml")]
    problems = {file: lint_file(file, today=today) for file in sorted(chosen)}
    if as_json:
        _print({"files": [{"file": str(f), "problems": p} for f, p in problems.items()]})
    else:
        for file, found in problems.items():
            click.echo(f"{file}: {'ok' if not found else ''}".rstrip())
            for problem in found:
                click.echo(f"  {problem}")
    wrong = sum(bool(found) for found in problems.values())
    if wrong:
        raise ProfileError(f"{wrong} of {len(problems)} profiles are not right")


@profiles.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of a profile's file, for an editor.

    Example: edgekit profiles schema > profile.schema.json
    """
    from edgekit_converters.profile_schema import text

    click.echo(text(), nl=False)


def _print(value: object) -> None:
    click.echo(msgspec.json.encode(value).decode())
