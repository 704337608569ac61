"""Page: what a person reads of an examination, in 80 columns of plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from edgekit_runtime.doctor.examination import Examination
from edgekit_runtime.doctor.findings import Finding
from edgekit_runtime.doctor.ties import Tie

WIDTH = 80
_LABEL = 10
_MARKS = {"ok": "ok", "note": "note", "unknown": "?", "wrong": "WRONG"}
_MARK = 7


def page(found: Examination) -> str:
    """Findings by what they are of, then what a change would break."""
    lines = [f"{'profile':{_LABEL}}{found.profile}"]
    for area, group in groupby(found.findings, key=lambda finding: finding.area):
        for place, finding in enumerate(group):
            lines.extend(_finding(finding, label=area if place == 0 else ""))
    if found.ties:
        lines += ["", "If a driver, a firmware or an engine changed:"]
        for tie in found.ties:
            lines.extend(_tie(tie))
    return "\n".join(lines)


def _finding(finding: Finding, *, label: str) -> Iterator[str]:
    facts = [
        finding.found or "",
        f"the profile says {finding.wanted}" if _differs(finding) else "",
        finding.detail,
    ]
    text = ": ".join((finding.subject, "; ".join(filter(None, facts)) or "ok"))
    head = f"{label:{_LABEL}}{_MARKS[finding.status]:{_MARK}}"
    yield from _wrapped(text, head=head)
    if finding.command is not None and finding.status != "ok":
        # A command stands on a line of its own, to be copied whole.
        yield f"{'':{_LABEL + _MARK}}> {finding.command}"


def _differs(finding: Finding) -> bool:
    return finding.wanted is not None and finding.status != "ok"


def _tie(tie: Tie) -> Iterator[str]:
    bound = f" (bound to {', '.join(tie.bound_to)})" if tie.bound_to else ""
    parts = [f"{tie.model} {tie.version}, {tie.variant}: {tie.on_change}{bound}"]
    if tie.takes_s is not None:
        parts.append(f"which took {tie.takes_s:.0f} s")
    if tie.stays is not None:
        parts.append(f"{tie.stays} serves meanwhile")
    elif tie.on_change == "breaks":
        parts.append("no other variant of it goes on")
    if tie.changed:
        parts.append(f"changed since: {', '.join(tie.changed)}")
    if tie.problem:
        parts.append(tie.problem)
    head = f"  {'*' if tie.active else '-'} "
    yield from _wrapped("; ".join(parts), head=head)


def _wrapped(text: str, *, head: str) -> Sequence[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    )
