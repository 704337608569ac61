"""About: what this device runs on, as telemetry tells it; a daemon sees no change of it."""

from __future__ import annotations

import platform

from edgekit import __version__
from edgekit.messages import About
from edgekit_runtime import engines


def read() -> About:
    """Versions of edgekit, Python, the system and the engines that are installed here."""
    return About(
        edgekit=__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        engines=engines.versions(),
    )
