"""Commands of the contract itself: signing keys."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def keys() -> None:
    """Make signing keys.

    Example: edgekit keys new keys/
    """


@keys.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def new(folder: Path, *, as_json: bool) -> None:
    """Write a new key pair to DIR: edgekit.key (private, 0600) and edgekit.pub.

    Keys that are there already are never replaced. Keep edgekit.key offline; give edgekit.pub to
    whoever shall trust your bundles.

    Example: edgekit keys new keys/
    """
    from edgekit import signing  # imported here: it costs what --help must not cost

    private, public = signing.new_pair(folder)
    key = signing.PublicKey.read(public)
    if as_json:
        click.echo(json.dumps({"key": str(private), "public": str(public), "id": key.id}))
        return
    click.echo(f"private key  {private}")
    click.echo(f"public key   {public}")
    click.echo(f"id           {key.id}")
