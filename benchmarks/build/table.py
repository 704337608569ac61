"""The peer table as Markdown, from the JSON that `compare` writes. It states and does not rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MEASURES = {
    "top1": "same class",
    "lines": "lines read the same",
    "neighbours": "same nearest neighbour",
    "threshold": "same side of .5",
    "odds": "odds within a factor of 1.5",
    "mask": "IoU of the masks",
    "boxes": "boxes of score .05 matched at IoU .5",
}
_HEAD = (
    "| tool | speed-up | agreement [95 %] | cosine | size, MB | took, s (CPU) | memory, MB |",
    "|---|---|---|---|---|---|---|",
)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole page: what it was measured on, a table a model, and what each tool is."""
    machine = report["machine"]
    loads = [entry["float"]["load"] for entry in report["models"]]
    parts = [
        "Speed-up is float's CPU time in onnxruntime over the artefact's, one thread, batch 1,"
        " taken in turn in one process; quartiles are in the JSON. Agreement is with the float"
        " model on held-out samples, intervals by source. Seconds and memory are those of the"
        " tool's whole command.",
        f"Measured on {machine['cpu']}, {machine['cores']} cores, Linux {report['kernel']}; load"
        f" average while measuring {min(loads):.1f} to {max(loads):.1f}.",
    ]
    parts += [one(entry) for entry in report["models"]]
    parts.append(tools(report))
    return "\n\n".join(parts) + "\n"


def one(entry: Mapping[str, Any]) -> str:
    """The table of one model."""
    own, held_out = entry["float"], entry["held_out"]
    title = (
        f"**{entry['name']}**: {entry['family']} ({entry['package']}). Agreement:"
        f" {_MEASURES[entry['agreement']]}, {held_out['samples']} samples of {held_out['groups']}"
        f" sources; {entry['calibration']} calibrate."
    )
    if entry["told"]:
        title += f" Only edgekit is told more than the model: `{entry['told']}`."
    first = f"| float, onnxruntime | 1 | 1 | 1 | {_mb(own)} | | |"
    rows = [first, *(_row(tool, own) for tool in entry["tools"])]
    return "\n".join([title, "", *_HEAD, *rows])


def tools(report: Mapping[str, Any]) -> str:
    """What each tool is: its command or script, and what having it costs."""
    lines = ["| tool | how | environment |", "|---|---|---|"]
    seen: dict[str, str] = {}
    for tool in (tool for entry in report["models"] for tool in entry["tools"]):
        installed = tool.get("install")
        cost = (
            f"{', '.join(tool['pins'])}: {installed['packages']} packages,"
            f" {installed['size_mb']} MB, {installed['seconds']:.0f} s to install"
            if installed
            else ""
        )
        seen[tool["name"]] = f"| {tool['name']} | `{tool['how']}` | {cost} |"
    return "\n".join([*lines, *seen.values()])


def _row(tool: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    name = tool["name"]
    if chosen := tool.get("chosen"):
        unproven = tool.get("gate") == "not_enough_data"
        doubt = "; its data prove nothing faster" if unproven else ""
        name += f" ({chosen.get('scheme', chosen.get('name'))}{doubt})"
    cost = f"{tool['seconds']:.0f} ({tool['cpu_seconds']:.0f}) | {tool['peak_memory_mb']}"
    if tool["failure"]:
        reason = " ".join(tool["failure"].split()).replace("|", "\\|")
        return f"| {name} | | failed: {reason} | | | {cost} |"
    low, high = tool["agreement_ci95"]
    agreement = f"{tool['agreement']:.3f} [{low:.3f}, {high:.3f}]"
    unchanged = " (not smaller)" if tool["size_bytes"] >= own["size_bytes"] else ""
    return (
        f"| {name} | {tool['speedup']:.2f} | {agreement} | {tool['cosine']:.4f} |"
        f" {_mb(tool)}{unchanged} | {cost} |"
    )


def _mb(entry: Mapping[str, Any]) -> str:
    return f"{entry['size_bytes'] / 1e6:.1f}"
