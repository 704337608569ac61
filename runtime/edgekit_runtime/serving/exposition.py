"""Exposition: families of samples as Prometheus text, format 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["counter", "gauge"]
Labels = Mapping[str, str]
Sample = tuple[Labels, float]


class Distribution(NamedTuple):
    """How values of one series lay.

    Attributes:
        counts: of values up to each edge and above the one before, one more above the last edge.
        total: sum of all values.
    """

    labels: Labels
    counts: Sequence[int]
    total: float


def family(name: str, kind: Kind, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """The lines of a family; nothing where it has no samples."""
    lines = [_line(name, labels, value) for labels, value in samples]
    if lines:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        yield from lines


def histogram(
    name: str, text: str, edges: Sequence[float], series: Iterable[Distribution]
) -> Iterator[str]:
    """The lines of a histogram: counts up to each edge, all below it included."""
    lines: list[str] = []
    for labels, counts, total in series:
        below = 0
        for edge, count in zip((*edges, None), counts, strict=True):
            below += count
            le = "+Inf" if edge is None else f"{edge:.6g}"
            lines.append(_line(f"{name}_bucket", {**labels, "le": le}, below))
        lines.append(_line(f"{name}_sum", labels, total))
        lines.append(_line(f"{name}_count", labels, below))
    if lines:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} histogram"
        yield from lines


def _line(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
