"""Options that `edgekit limits` and `edgekit plan` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def shared(command: Command) -> Command:
    """Add what `limits` and `plan` share."""
    for option in reversed(
        (
            click.option(
                "--server",
                metavar="URL",
                help="Drive a server that runs already: http://HOST:PORT or unix:PATH.",
            ),
            click.option("--listen", metavar="HOST:PORT", help="Where the started one listens."),
            click.option(
                "--seconds", default=30.0, show_default=True, help="How long to measure in all."
            ),
            click.option(
                "--generators",
                type=click.IntRange(1, 64),
                metavar="N",
                help="Load processes; default one for two cores.",
            ),
            click.option("--seed", default=0, show_default=True, help="Of the arrivals."),
            click.option(
                "--trust",
                type=click.Path(path_type=Path),
                multiple=True,
                metavar="PUBKEY",
                help="A public key to trust, beside those in the trust folder.",
            ),
            click.option("--insecure", is_flag=True, help="Take a bundle that nobody signed."),
            click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
            click.argument("run_options", nargs=-1, type=click.UNPROCESSED),
        )
    ):
        command = option(command)
    return command
