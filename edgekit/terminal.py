"""Terminal: text from devices, boards and brokers, as it may be printed where a person reads.

Promise: nothing that is printed through here moves a cursor, changes colours or titles, turns the
direction of writing, or begins a line that it does not own.
"""

from __future__ import annotations


def plain(text: str) -> str:
    """One line, with U+FFFD for whatever is not printable and a space for a tab."""
    return "".join(
        char if char.isprintable() else " " if char == "\t" else "\ufffd" for char in text
    )


def plain_lines(text: str) -> str:
    """Lines of text, each made plain."""
    return "\n".join(map(plain, text.split("\n")))


def plain_json(line: str) -> str:
    r"""One line of JSON with `\u` escapes for whatever is not printable: the same document."""
    return line if line.isprintable() else "".join(map(_escaped, line))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    raw = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{raw[at : at + 2].hex()}" for at in range(0, len(raw), 2))
