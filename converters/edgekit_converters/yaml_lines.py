"""Where fields stand in a YAML file: a line for each place, and the place in msgspec's messages.

The text must have been read by `edgekit.documents` before, which bounds its size and nesting.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import yaml

Place = tuple[str | int, ...]

_AT = re.compile(r"^(?P<message>.*) - at `\$(?P<path>.*)`$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


def lines_of(text: str) -> dict[Place, int]:
    """The line, counted from 1, of each key and each item of a list."""
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found: dict[Place, int] = {}
    if root is not None:
        _walk(root, (), found)
    return found


def _walk(node: yaml.Node, place: Place, found: dict[Place, int]) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found[(*place, key.value)] = key.start_mark.line + 1
            _walk(value, (*place, key.value), found)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found[(*place, i)] = value.start_mark.line + 1
            _walk(value, (*place, i), found)


def place_of(message: str) -> tuple[str, Place]:
    """A message of msgspec without the place in it, and that place; () where it names none."""
    match = _AT.match(message)
    if match is None:
        return message, ()
    steps = _STEP.findall(match["path"])
    place = tuple(int(index) if index.isdigit() else key or index for key, index in steps)
    return match["message"], place


def text_of(place: Place) -> str:
    """A place as people write it: `engines[0].version`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".")
