"""Boards: the table of profiles as people read it, in a terminal and in the README."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from edgekit.profile import DeviceProfile

BEGIN = "<!-- boards: made by `edgekit profiles list --markdown` -->"
END = "<!-- /boards -->"


def table(found: Sequence[DeviceProfile]) -> Table:
    """One line a board, in 80 columns: its first engine, where the daemon runs, the evidence."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "first engine", "daemon", "evidence"):
        made.add_column(column, no_wrap=True)
    for profile in found:
        first = profile.engines[0]
        made.add_row(
            profile.name,
            f"{first.name} on {first.accelerator}",
            _daemon(profile),
            profile.quality.evidence,
        )
    return made


def markdown(found: Sequence[DeviceProfile]) -> str:
    """The table of the README, between its two markers."""
    rows = [
        "| profile | board | engines | daemon | best evidence so far |",
        "|---|---|---|---|---|",
        *(
            f"| `{profile.name}` | {profile.title} | {engines(profile)} | {_daemon(profile)}"
            f" | {profile.quality.evidence} |"
            for profile in found
        ),
    ]
    return "\n".join([BEGIN, *rows, END])


def engines(profile: DeviceProfile) -> str:
    """Each engine once, with what it runs on: `onnxruntime (gpu, cpu), litert (cpu)`."""
    places: dict[str, list[str]] = {}
    for engine in profile.engines:
        places.setdefault(engine.name, []).append(engine.accelerator)
    return ", ".join(f"{name} ({', '.join(found)})" for name, found in places.items())


def _daemon(profile: DeviceProfile) -> str:
    return "none" if profile.runtime == "artefact-only" else profile.runtime
