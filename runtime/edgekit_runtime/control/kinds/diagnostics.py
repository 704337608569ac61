"""`diagnostics`: what somebody who cannot go to the board asks first, in one document.

Secrets are not in it (`redact`); what the board does not tell is null.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgekit import __version__
from edgekit.control import Diagnostics
from edgekit_runtime import engines, sensors
from edgekit_runtime.control import redact
from edgekit_runtime.control.hands import Hands, Wait
from edgekit_runtime.control.kinds import set_interval
from edgekit_runtime.serving.served import Served

# systemd-timesyncd makes it when the clock was set from the network first.
_SYNCHRONISED = Path("/run/systemd/timesync/synchronized")


def run(_: Diagnostics, hands: Hands, __: Wait) -> dict[str, Any]:
    """Versions, configuration, models, disk, memory, heat, clock, link and certificate."""
    state = hands.config.state.folder
    config = msgspec.to_builtins(hands.config, enc_hook=str)
    found: dict[str, Any] = {
        "boot": hands.boot,
        "versions": _versions(),
        "config": redact.tree(config),
        "updates": msgspec.to_builtins(hands.updates.states()),
        "models": [_model(served) for served in hands.models.served()],
        "disk": _disk(state),
        "resources": msgspec.to_builtins(sensors.read(state)),
        "board": msgspec.to_builtins(sensors.read_board()),
        "clock": _clock(hands),
        "link": {"connected": hands.is_linked(), "interval_s": set_interval.kept_s(hands)},
        "certificate_expires_ms": hands.certificate_expires_ms(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }
    return found


def _versions() -> dict[str, Any]:
    return {
        "edgekit": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "machine": platform.machine(),
        "executable": sys.executable,
        "engines": engines.versions(),
    }


def _model(served: Served) -> dict[str, Any]:
    return {
        "model": served.name,
        "version": served.version,
        "digest": served.digest,
        "variant": served.default.name,
        "engine": f"{served.variant.engine} {served.engine_version}",
        "providers": list(served.providers),
        "runs": served.plan.place,
        "ready": served.is_ready,
        "waiting": served.queue_depth,
        "skipped": dict(served.skipped),
        "verified_by": served.verified_by,
    }


def _disk(state: Path) -> dict[str, Any]:
    status = os.statvfs(state)
    return {
        "folder": str(state),
        "free_bytes": status.f_bavail * status.f_frsize,
        "total_bytes": status.f_blocks * status.f_frsize,
        "free_inodes": status.f_favail,
        "read_only": bool(status.f_flag & os.ST_RDONLY),
    }


def _clock(hands: Hands) -> dict[str, Any]:
    return {
        "now_ms": hands.clock.now_ms(),
        "up_s": hands.clock.monotonic(),
        "synchronised": _SYNCHRONISED.exists() if _SYNCHRONISED.parent.is_dir() else None,
    }
