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
from edgekit_runtime.config import FleetSection
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
    configured_s = _configured_s(hands, fleet)
    seconds = configured_s if args.seconds is None else args.seconds
    hands.set_interval(seconds)
    return {"seconds": seconds, "configured": configured_s}


def _configured_s(hands: Hands, at_start: FleetSection) -> float:
    """As the file says now, which a `reload` may have made to hold; else as it said at start-up."""
    try:
        new = hands.reread()
    except ConfigError as e:
        log.warning("interval is as configured at start-up", extra={"error": str(e)})
        return at_start.telemetry_interval_s
    return (new.fleet if new and new.fleet else at_start).telemetry_interval_s


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
