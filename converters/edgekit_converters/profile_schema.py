"""The JSON Schema of a profile's file, made from the type that reads it.

For editors and other tools: edgekit itself reads with the type, so the two cannot disagree about
fields, types, ranges and patterns. What fields say together is the business of `lint`.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from edgekit.profile import DeviceProfile

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# What a file that extends another cannot inherit.
_OWN = ["name", "quality"]


def schema() -> dict[str, Any]:
    """The schema: a file stands alone, or extends another and then needs a name and a quality."""
    (reference,), definitions = msgspec.json.schema_components(
        [DeviceProfile], ref_template="#/$defs/{name}"
    )
    name = reference["$ref"].rpartition("/")[2]
    profile = dict(definitions.pop(name))
    required = profile.pop("required")
    made: dict[str, Any] = {
        "$schema": DRAFT,
        **profile,
        "title": "edgekit device profile",
        "properties": {
            "extends": {
                "type": "string",
                "description": "Name of the profile that this one changes; see docs/profiles.md.",
            },
            **profile["properties"],
        },
        "if": {"required": ["extends"]},
        "then": {"required": _OWN},
        "else": {"required": required},
        "$defs": definitions,
    }
    return {key: _portable(value) for key, value in made.items()}


def _portable(value: Any) -> Any:
    """The same for readers that are not Python: patterns end in `$`, descriptions lose indents."""
    if isinstance(value, dict):
        plain = {key: _portable(below) for key, below in value.items()}
        for key, change in (("pattern", _ecma), ("description", inspect.cleandoc)):
            if isinstance(plain.get(key), str):
                plain[key] = change(plain[key])
        return plain
    if isinstance(value, list | tuple):
        return [_portable(below) for below in value]
    return value


def _ecma(pattern: str) -> str:
    # JSON Schema has the expressions of ECMA-262, which know no \Z; their $ ends the text.
    return pattern.removesuffix(r"\Z") + "$" if pattern.endswith(r"\Z") else pattern


def text() -> str:
    """The schema as docs/profile.schema.json holds it."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"
