"""The base of all data that crosses an edge: immutable, and an unknown field is an error."""

from __future__ import annotations

import msgspec


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Data that is checked once, where it comes in."""
