"""`logs`: the daemon's latest log lines, from memory: also of a board whose disk takes none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from edgekit.control import MAX_OUTPUT_BYTES, Level, Logs
from edgekit_runtime.control.hands import Hands, Wait

_LEVELS: Mapping[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# For the names around the lines.
_ROOM_BYTES = 1024


def run(args: Logs, hands: Hands, _: Wait) -> dict[str, Any]:
    """`lines`, JSON texts, the oldest first; fewer than asked where more would not fit."""
    room = MAX_OUTPUT_BYTES - _ROOM_BYTES
    lines = hands.ring.tail(args.lines, level=_LEVELS[args.level], max_bytes=room)
    return {"boot": hands.boot, "level": args.level, "lines": lines}
