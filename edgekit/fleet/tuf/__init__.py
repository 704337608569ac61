"""TUF: a fleet's signed repository, made and changed; any static HTTP server can hold it.

Map: `roles` (who may say what), `make` (the first state), `publish`, `refresh` and `rotate`
(changes, each through `editor`), `sweep` (what is old goes), `served` (a coordinator's view of it).
The form and the rules are those of the TUF specification, by python-tuf's Metadata API.
"""

from __future__ import annotations

from edgekit.fleet.tuf.make import make

__all__ = ["make"]
