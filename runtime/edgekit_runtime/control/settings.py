"""`[commands]`: what an operator may ask of this board from afar."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgekit.control import KINDS, Kind
from edgekit.structs import Strict


class CommandsSection(Strict, frozen=True, kw_only=True):
    """`[commands]`: which commands of the fleet this board carries out.

    Attributes:
        enabled: whether it takes any; one that it does not take is refused, and audited.
        allow: kinds that it takes.
        limit_s: longest that one command may run; a command may ask for less.
        log_lines: most lines of its own log that are kept in memory for `logs`.
    """

    enabled: bool = True
    allow: tuple[Kind, ...] = KINDS
    limit_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 60.0
    log_lines: Annotated[int, msgspec.Meta(ge=10, le=10_000)] = 1000
