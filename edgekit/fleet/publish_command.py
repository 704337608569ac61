"""Publish: a bundle goes into a fleet's repository, by signing for it or through a coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.errors import FleetError, UntrustedError, UsageError
from edgekit.fleet.client import DEFAULT_URL, Client, show
from edgekit.fleet.listing import paragraph


@click.command(epilog="Example: edgekit publish lite0-1.1.0-jetson.edge --fleet fleet/")
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--fleet",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the fleet: signs for the bundle with its release key.",
)
@click.option(
    "--release-key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The release key, where it is not in the fleet's folder. [DIR/release/release.key]",
)
@click.option("--no-deltas", is_flag=True, help="Make no deltas from the versions before.")
@click.option("--coordinator", "url", help=f"Insecure fleet: who takes it. [{DEFAULT_URL}]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def publish(
    bundle: Path,
    folder: Path | None,
    release_key: Path | None,
    no_deltas: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Put BUNDLE into the fleet's repository.

    With --fleet it is checked and signed for here, with deltas from the three versions before it,
    in the folder that a coordinator or any web server serves; a running coordinator notices.
    Without, the coordinator of an insecure fleet checks it and takes it.
    """
    if folder is not None and url is not None:
        raise UsageError("--fleet and --coordinator are two ways", hint="give one of them")
    if folder is None and release_key is not None:
        raise UsageError("--release-key signs in a fleet's folder", hint="add --fleet DIR")
    if folder is None:
        answer = Client(url or DEFAULT_URL).send_file("/api/bundles", bundle, dict[str, Any])
    else:
        answer = _sign(bundle, folder, release_key=release_key, deltas=not no_deltas)
    found = answer["bundle"]
    said = "published" if answer["new"] else "was published already"
    lines = paragraph(
        f"{found['name']} {found['version']} for {found['profile']} {said}: {found['digest']}"
    )
    lines += [
        f"delta from {item['from'][:19]}…: {item['size_bytes']} bytes, "
        f"{item['size_bytes'] / found['size_bytes']:.1%} of the whole"
        for item in answer.get("deltas", [])
    ]
    show(answer, as_json=as_json, lines=lines)


def _sign(bundle: Path, folder: Path, *, release_key: Path | None, deltas: bool) -> dict[str, Any]:
    import msgspec

    from edgekit.clock import SystemClock
    from edgekit.fleet.folder import FleetFolder
    from edgekit.fleet.tuf.publish import publish as sign
    from edgekit.fleet.tuf.signers import is_here

    fleet = FleetFolder(folder)
    key = release_key or fleet.release_key
    if not is_here(key):
        raise FleetError(
            f"{key} is needed to sign the release and is not here",
            hint="--release-key FILE names it where it is kept",
        )
    try:
        added = sign(fleet, bundle, clock=SystemClock(), deltas=deltas, release_key=key)
    except UntrustedError as e:
        raise UntrustedError(
            f"{bundle}: {e.message}", hint=f"edgekit build … --key {key} signs it"
        ) from e
    entry = added.entry
    name, version, profile = entry.key
    return {
        "bundle": {
            "name": name,
            "version": version,
            "profile": profile,
            "digest": entry.custom.digest,
            "file_sha256": entry.sha256,
            "size_bytes": entry.size_bytes,
            "target": entry.path,
        },
        "deltas": msgspec.to_builtins(entry.custom.deltas),
        "new": added.new,
    }
