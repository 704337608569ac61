"""Overlays: what two models saw, drawn over a picture of a report.

The float model and the artefact have the same two colours everywhere, told apart by people who do
not see all colours, on any picture and on light and dark pages; lines have a dark edge.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape

import numpy as np

from edgekit_converters.metrics.seen import Cell, Seen, SeenBox, SeenMask

FLOAT_COLOUR, ARTEFACT_COLOUR, OTHER_COLOUR = "#38bdf8", "#fb923c", "#f0abfc"
_OPACITY, _DIMMED = 230, 110
# Corners beyond this are pixels; a share of the picture lies within it.
_LARGEST_SHARE = 2.0


def legend(seen: Seen) -> str:
    """What the colours of an overlay mean, as markup."""
    if isinstance(seen, SeenMask):
        entries = (
            (FLOAT_COLOUR, "float's mask alone"),
            (ARTEFACT_COLOUR, "the artefact's mask alone"),
            (OTHER_COLOUR, "another class"),
        )
        return _legend([(_patch(colour), text) for colour, text in entries])
    return _legend(
        [
            (_stroke(FLOAT_COLOUR, dashed=False), "float"),
            (_stroke(ARTEFACT_COLOUR, dashed=True), "artefact"),
            (_stroke("var(--soft)", dashed=False, width=3.5), "thick: the other has no such box"),
        ]
    )


def over(seen: Seen, height: int, width: int, *, name: Callable[[int], str]) -> str:
    """A drawing that lies upon a picture of this many pixels; `name` is what a class is called."""
    if isinstance(seen, SeenMask):
        inside = (
            f'<image class="cells" width="{width}" height="{height}" preserveAspectRatio="none"'
            f' href="{_png(seen)}"/>'
        )
    else:
        largest = max(
            (abs(each) for box in (*seen.source, *seen.artefact) for each in box.corners),
            default=0.0,
        )
        unit = (1.0, 1.0) if largest > _LARGEST_SHARE else (float(width), float(height))
        both = [("float", box) for box in seen.source] + [
            ("artefact", box) for box in seen.artefact
        ]
        # Edges lie below all lines, and dashes upon whole ones: both show where they are one.
        inside = "".join(_edge(box, unit) for _, box in both)
        inside += "".join(_line(box, unit, who, name) for who, box in both)
    return f'<svg class="sight" viewBox="0 0 {width} {height}">{inside}</svg>'


def _edge(box: SeenBox, unit: tuple[float, float]) -> str:
    return f'<rect class="edge{_thick(box)}" {_place(box, unit)}/>'


def _line(box: SeenBox, unit: tuple[float, float], who: str, name: Callable[[int], str]) -> str:
    title = escape(f"{who}: {name(box.label)}, {box.score:.2f}")
    return f'<rect class="{who}-box{_thick(box)}" {_place(box, unit)}><title>{title}</title></rect>'


def _thick(box: SeenBox) -> str:
    return " alone" if box.alone else ""


def _place(box: SeenBox, unit: tuple[float, float]) -> str:
    x, y = box.corners[0] * unit[0], box.corners[1] * unit[1]
    wide = max(box.corners[2] * unit[0] - x, 0.0)
    high = max(box.corners[3] * unit[1] - y, 0.0)
    return f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}"'


def _png(seen: SeenMask) -> str:
    from PIL import Image

    colours = np.zeros((len(Cell), 4), np.uint8)
    # What did not change steps back.
    colours[Cell.SAME, 3] = _DIMMED
    for cell, colour in (
        (Cell.ONLY_SOURCE, FLOAT_COLOUR),
        (Cell.ONLY_ARTEFACT, ARTEFACT_COLOUR),
        (Cell.OTHER_CLASS, OTHER_COLOUR),
    ):
        colours[cell] = (*bytes.fromhex(colour[1:]), _OPACITY)
    buffer = io.BytesIO()
    Image.fromarray(colours[seen.map()]).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _legend(entries: list[tuple[str, str]]) -> str:
    items = "".join(f"<li>{mark}{escape(text)}</li>" for mark, text in entries)
    return f'<ul class="key flat">{items}</ul>'


def _patch(colour: str) -> str:
    return f'<svg viewBox="0 0 14 14"><rect width="14" height="14" rx="3" fill="{colour}"/></svg>'


def _stroke(colour: str, *, dashed: bool, width: float = 2.5) -> str:
    dash = ' stroke-dasharray="4 2.5"' if dashed else ""
    return (
        '<svg viewBox="0 0 14 14"><path d="M0 7h14" style="stroke:'
        f'{colour}" stroke-width="{width}"{dash}/></svg>'
    )
