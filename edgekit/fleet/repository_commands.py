"""Commands of the signed repository: metadata is signed again, keys are exchanged."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.fleet.client import show

_folder = click.argument(
    "folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command(epilog="Example: edgekit fleet refresh fleet/")
@_folder
@click.option("--all", "every", is_flag=True, help="Also what is not due yet.")
@_json
def refresh(folder: Path, every: bool, as_json: bool) -> None:
    """Sign the repository's metadata again, by the keys that are in DIR, before it expires.

    A running coordinator does it for all that its own keys sign: snapshot, timestamp, candidates.
    Root, targets and releases last for years and wait for their keys. Metadata that no device can
    ask for any more is removed: what no timestamp names that has not expired.
    """
    from edgekit.clock import SystemClock
    from edgekit.fleet.folder import FleetFolder
    from edgekit.fleet.tuf.refresh import refresh as sign

    done = sign(FleetFolder(folder), clock=SystemClock(), every=every)
    lines = [f"{len(done.signed)} roles signed, the timestamp is good until {done.expires}"]
    lines += [
        f"{role} expires at {at} and its key is not here" for role, at in done.waiting.items()
    ]
    if done.removed:
        lines.append(f"{done.removed} files of old metadata were removed")
    show(done, as_json=as_json, lines=lines)


@click.command("rotate-root", epilog="Example: edgekit fleet rotate-root fleet/ --replace root-2")
@_folder
@click.option(
    "--replace",
    "names",
    multiple=True,
    metavar="NAME",
    help="Key to exchange: root-1, root-2, root-3, targets, online or release. Repeatable.",
)
@_json
def rotate_root(folder: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Write a new root, with new keys in place of those that are named; devices follow it.

    Two of the three root keys must be in DIR/offline. The file of a key that is replaced is
    overwritten by the new one. Without --replace the new root only lives longer.
    """
    from edgekit.clock import SystemClock
    from edgekit.fleet.folder import FleetFolder
    from edgekit.fleet.tuf.rotate import rotate

    version = rotate(FleetFolder(folder), names, clock=SystemClock())
    said = f", with a new key for {', '.join(names)}" if names else ""
    document = {"root": version, "replaced": names}
    show(document, as_json=as_json, lines=[f"root {version} is signed{said}"])
