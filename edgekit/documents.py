"""Documents that people write: YAML read within limits, so that no file can eat the machine.

Size and nesting are bounded, and what makes YAML dangerous or doubtful is refused: aliases (a few
lines of them unfold to gigabytes), doubled keys, and numbers that no comparison holds for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import UsageError

if TYPE_CHECKING:
    import yaml

MAX_DOCUMENT_BYTES = 1 << 20
MAX_DEPTH = 32


def read(path: Path, *, what: str, error: type[UsageError]) -> Any:
    """The tree of a YAML file: mappings, lists and plain values; `None` for an empty file.

    Args:
        path: the file.
        what: what the file is, for messages ("profile", "recipe").
        error: what to raise where the file breaks a rule.
    """
    what = f"{what} {path}"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as e:
        raise error(f"{what} cannot be read: {e.strerror}") from e
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise error(f"{what} has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return parse(raw.decode("utf-8"), what=what, error=error)
    except UnicodeDecodeError as e:
        raise error(f"{what} is not UTF-8: {e}") from e


def parse(text: str, *, what: str, error: type[UsageError]) -> Any:
    """The tree of a YAML text, raising `error` that names `what` and, where known, the line."""
    import yaml  # a board gets profiles as JSON in the manifest and has no YAML

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, loader, seen=set(), depth=0)
        return loader.construct_document(node)
    except RecursionError as e:
        raise error(f"{what} is nested deeper than {MAX_DEPTH}") from e
    except (yaml.YAMLError, ValueError) as e:
        raise error(f"{what} is not valid YAML: {_on_one_line(e)}") from e


def _on_one_line(e: Exception) -> str:
    """What is wrong and where; YAML's own errors draw a picture of the place."""
    mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None)
    if mark is None or problem is None:
        return str(e)
    words = ", ".join(filter(None, (getattr(e, "context", None), problem)))
    return f"line {mark.line + 1}, column {mark.column + 1}: {words}"


def _check(node: yaml.Node, loader: yaml.SafeLoader, *, seen: set[int], depth: int) -> None:
    """Walk the nodes before anything is made of them, raising `ValueError` for what is refused."""
    import yaml

    line = f"line {node.start_mark.line + 1}"
    if id(node) in seen:
        raise ValueError(f"{line}: an alias stands for this, aliases are not allowed")
    seen.add(id(node))
    if depth > MAX_DEPTH:
        raise ValueError(f"{line}: nested deeper than {MAX_DEPTH}")
    if isinstance(node, yaml.ScalarNode):
        number = node.tag == "tag:yaml.org,2002:float"
        if number and not math.isfinite(loader.construct_yaml_float(node)):
            raise ValueError(f"{line}: {node.value} is not a finite number")
        return
    keys = set()
    for child in node.value:
        key, value = child if isinstance(child, tuple) else (None, child)
        if key is not None:
            if not isinstance(key.value, str) or key.value in keys:
                raise ValueError(f"{line}: key {key.value!r} comes twice, or is not a word")
            keys.add(key.value)
            _check(key, loader, seen=seen, depth=depth + 1)
        _check(value, loader, seen=seen, depth=depth + 1)
