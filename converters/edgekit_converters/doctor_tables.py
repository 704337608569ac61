"""What a person sees of the doctor's findings, from 80 columns on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from edgekit_converters.doctor import Checkup, EngineHere, Line, Machine
from edgekit_converters.toolchains import TOOLCHAINS

_LEGEND = (
    "executed: artefacts run on this machine, which is such a board; simulated: their arithmetic"
    " runs here; estimated: simulated, with a latency by the tool's model of the hardware; linted:"
    " checked, and run nowhere"
)
_STYLES = {"executed": "green", "simulated": "cyan", "estimated": "cyan", "nothing": "dim"}


def show(found: Checkup) -> None:
    """Print the findings to stdout."""
    Console(highlight=False).print(page(found))


def page(found: Checkup) -> RenderableType:
    """The findings from the machine to the boards, and last what adds more."""
    parts: list[RenderableType] = [
        _machine(found.machine),
        _engines(found.engines),
        Text(),
        _toolchains(found),
        Text(),
        _boards(found.lines),
        Text(_LEGEND, "dim"),
    ]
    notes = _remedies(found)
    return Group(*parts, *([Text(), *notes] if notes else []))


def _machine(machine: Machine) -> Table:
    table = Table.grid("", Column(overflow="fold"), padding=(0, 2))
    table.add_row("machine", machine.description)
    table.add_row("memory", f"{machine.memory_available_mb / 1024:.1f} GB free")
    table.add_row(
        "disk", f"{machine.disk_free_mb / 1024:.1f} GB free for tool chains in {machine.toolchains}"
    )
    table.add_row("python", f"{machine.python}, {machine.libc}, uv {machine.uv or 'missing'}")
    return table


def _engines(engines: Sequence[EngineHere]) -> Table:
    table = Table.grid("", "", Column(overflow="fold"), padding=(0, 2))
    for place, engine in enumerate(engines):
        known = f"{engine.version} ({', '.join(engine.providers)})".removesuffix(" ()")
        says = known if engine.version else f"not here: {engine.command}"
        table.add_row("engines" if place == 0 else "", engine.name, says)
    return table


def _toolchains(found: Checkup) -> Table:
    table = _table("tool chain", "status", "MB", "what it is")
    for chain in found.toolchains:
        style = "green" if chain.status == "ready" else "yellow"
        size = str(chain.size_mb) if chain.size_mb else ""
        table.add_row(chain.name, Text(chain.status, style), size, chain.title)
    return table


def _boards(lines: Sequence[Line]) -> Table:
    table = _table("board", "engine", "a build here is", "missing")
    before = ""
    for line in lines:
        table.add_row(
            "" if line.profile == before else line.profile,
            f"{line.engine} ({line.accelerator})",
            _outcome(line),
            " ".join(line.missing) or _wanted_engine(line),
        )
        before = line.profile
    return table


def _outcome(line: Line) -> Text:
    """How far a build goes; with the one format that it takes, where that is not ONNX."""
    if line.reach == "nothing":
        return Text("nothing", _STYLES["nothing"])
    if not line.builds_from:
        return Text("lint only", "yellow")
    only_tflite = "" if "onnx" in line.builds_from else ", .tflite"
    return Text(f"{line.reach}{only_tflite}", _STYLES.get(line.reach, ""))


def _wanted_engine(line: Line) -> str:
    """The engine that is missing here, where that is what keeps a target from building."""
    return "" if line.builds_from or line.target is None else line.reason


def _remedies(found: Checkup) -> list[Text]:
    """The command that adds more, then what no command adds."""
    says = [f"more: {found.command}"] if found.command else []
    missing = {name for line in found.lines for name in line.missing}
    says += [
        f"{TOOLCHAINS[name].program}: {TOOLCHAINS[name].note}"
        for name in sorted(missing)
        if TOOLCHAINS[name].program
    ]
    return [Text(text) for text in says]


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        last = place == len(columns) - 1
        table.add_column(column, no_wrap=not last)
    return table
