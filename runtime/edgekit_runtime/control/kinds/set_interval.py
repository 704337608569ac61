"""`set_interval`: seconds between two telemetry messages, kept over restarts.

    STATE/commands/interval.json

Promise: it is on disk before it counts, and what was set from afar wins over the configuration
until it is taken back, which `seconds` left out does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from edgekit import storage
from edgekit.control import SetInterval
from edgekit.errors import ConfigError
from edgekit_runtime.control.hands import Hands, Wait
from edgekit_runtime.control.journal import FOLDER

log = logging.getLogger(__name__)

FILE = "interval.json"


def run(args: SetInterval, hands: Hands, _: Wait) -> dict[str, Any]:
    """`seconds` that hold now, and `configured` ones."""
    fleet = hands.config.fleet
    if fleet is None:
        raise ConfigError("this device belongs to no fleet")
    storage.write(_path(hands), msgspec.json.encode(args))
    seconds = fleet.telemetry_interval_s if args.seconds is None else args.seconds
    hands.set_interval(seconds)
    return {"seconds": seconds, "configured": fleet.telemetry_interval_s}


def kept_s(hands: Hands) -> float | None:
    """What was set from afar, in seconds; `None` for nothing."""
    path = _path(hands)
    try:
        return msgspec.json.decode(path.read_bytes(), type=SetInterval).seconds
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as e:
        log.error("interval is as configured", extra={"path": str(path), "error": str(e)})
        return None


def restore(hands: Hands) -> None:
    """At start-up: what was set from afar holds again."""
    seconds = kept_s(hands)
    if seconds is not None:
        hands.set_interval(seconds)


def _path(hands: Hands) -> Path:
    return hands.config.state.folder / FOLDER / FILE
