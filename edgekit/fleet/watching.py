"""Watching: a rollout or a series of rounds, followed until its end; what goes on is said once.

Whoever stops watching stops nothing, and is told so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import click

from edgekit.fleet.client import Client, say

_POLL_S = 0.5

Found = dict[str, Any]


def follow(
    client: Client,
    path: str,
    found: Found,
    *,
    going: Collection[str],
    told: Callable[[Found], list[list[str]]],
    what: str,
    command: str,
) -> Found:
    """Follow something until its state is none of `going`, and return it as it is then.

    Args:
        path: of the API that shows it.
        found: as it was last.
        told: what there is to say of it, in items of one or more lines; one that was not there the
            last time is said.
        what: its name.
        command: that shows it later.

    Raises:
        click.Abort: Ctrl-C.
    """
    said: list[list[str]] = []
    try:
        while True:
            items = told(found)
            for lines in items:
                if lines not in said:
                    say(lines)
            said = items
            if found["state"] not in going:
                return found
            time.sleep(_POLL_S)
            found = client.get(path, Found)
    except KeyboardInterrupt:
        say([f"interrupted; {what} goes on: {command}"])
        raise click.Abort from None
