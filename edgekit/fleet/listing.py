"""Listing: tables and paragraphs that fit the terminal they are printed on.

Promise: no line is wider than the terminal, or than 100 columns where there is none, as long as no
single word is. What does not fit goes on below, indented. No cell can begin a line of its own: what
it says of line ends and terminals is replaced.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from edgekit.terminal import plain

_WIDTH = 100
_GAP = "  "
_INDENT = "    "
# A last column with less room than this is hard to read: it gets lines of its own.
_MIN_LAST = 24


def terminal_width() -> int:
    """Columns of the terminal; `COLUMNS` in the environment comes first."""
    return shutil.get_terminal_size((_WIDTH, 24)).columns


def table(rows: Sequence[Sequence[str]], *, width: int | None = None) -> list[str]:
    """Rows as lines; each column but the last is as wide as its widest cell.

    Args:
        rows: cells of each, all as many.
        width: columns that there are; the terminal's if not given.
    """
    width = width or terminal_width()
    rows = [[plain(cell) for cell in row] for row in rows]
    sizes = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    start = sum(size + len(_GAP) for size in sizes)
    longest = max((len(word) for row in rows for word in row[-1].split()), default=0)
    is_beside = width - start >= max(_MIN_LAST, longest)
    lines: list[str] = []
    for *cells, last in rows:
        head = _GAP.join(cell.ljust(size) for cell, size in zip(cells, sizes, strict=True))
        if is_beside and start + len(last) <= width:
            lines.append(f"{head}{_GAP}{last}".rstrip())
        elif is_beside:
            lines += _wrap(f"{head}{_GAP}", last, indent=" " * start, width=width)
        else:
            lines.append(head.rstrip())
            lines += _wrap(_INDENT, last, indent=_INDENT, width=width)
    return lines


def paragraph(text: str, *, indent: str = "", width: int | None = None) -> list[str]:
    """One line of text, over as many as it needs; `indent` goes before each."""
    return _wrap(indent, text, indent=f"{indent}{_INDENT}", width=width or terminal_width())


def _wrap(first: str, text: str, *, indent: str, width: int) -> list[str]:
    return textwrap.wrap(
        plain(text),
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
