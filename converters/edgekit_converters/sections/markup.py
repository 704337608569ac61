"""Markup: the few pieces of HTML that sections are made of.

Arguments called `text`, `title` or `head` are plain and are escaped here; `body` and cells are
markup already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgekit_converters.sections.numbers import NOT_MEASURED

_NARROW = 5


def figure(drawing: str, caption: str = "", *, title: str = "") -> str:
    """A drawing under its title, with a caption below."""
    above = f"<h4>{escape(title)}</h4>" if title else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{above}{drawing}{below}</figure>"


def explained(drawing: str, keys: Iterable[tuple[str, str]], caption: str) -> str:
    """A large drawing with its key and caption beside it, or below where there is no room.

    Args:
        keys: CSS class of a mark, and what it means.
    """
    marks = "".join(
        f'<li><svg viewBox="0 0 14 14"><circle class="{style}" cx="7" cy="7" r="5.5"/></svg>'
        f"{escape(text)}</li>"
        for style, text in keys
    )
    key = f'<ul class="key">{marks}</ul>' if marks else ""
    return (
        f'<figure class="explained">{drawing}<figcaption>{key}{escape(caption)}</figcaption>'
        "</figure>"
    )


def pair(bodies: Iterable[str]) -> str:
    """Pieces beside each other where there is room."""
    return f'<div class="pair">{"".join(bodies)}</div>'


def card(value: str, title: str, detail: str = "", *, absent: bool = False) -> str:
    """One figure with what it is; `absent` where it was not obtained."""
    kind = ' class="absent"' if absent else ""
    below = f"<i>{escape(detail)}</i>" if detail else ""
    return f"<div{kind}><b>{escape(value)}</b><span>{escape(title)}</span>{below}</div>"


def cards(each: Iterable[str]) -> str:
    return f'<div class="cards">{"".join(each)}</div>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    optional: Iterable[int] = (),
) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        numbers: columns that stand to the right.
        optional: columns that mean nothing for some models, and are left out where all is absent.
    """
    right = frozenset(numbers)
    empty = {i for i in optional if all(row[i] == absent() for row in rows)}

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if i in right else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(row)
            if i not in empty
        )

    top = cells("th", [escape(text) for text in head])
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    # A wide table keeps its columns readable on a telephone and scrolls there.
    kind = ' class="wide"' if len(head) > _NARROW else ""
    return f'<div class="scroll"><table{kind}>{header}<tbody>{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are; the second of a pair is markup."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{body}</dd>' for name, body in pairs)}</dl>"


def fold(title: str, body: str, *, is_open: bool = False) -> str:
    """A part that a reader opens; printed in full."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(title)}</summary>{body}</details>"


def listed(texts: Iterable[str], *, kind: str = "") -> str:
    """A list of sentences; nothing where there are none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def code(text: str) -> str:
    """A name that may be broken at its slashes."""
    return f"<code>{escape(text).replace('/', '/<wbr>')}</code>"


def known(text: str) -> str:
    """A figure, set apart where it is none."""
    return absent() if text == NOT_MEASURED else escape(text)


def absent() -> str:
    """In the place of a figure that was not obtained."""
    return f'<i class="none">{NOT_MEASURED}</i>'


def block(text: str) -> str:
    """Lines to copy."""
    return f"<pre>{escape(text)}</pre>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def clipped(text: str, most: int) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
