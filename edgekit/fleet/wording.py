"""Wording: what a device does and did with a model, so that it cannot be read in two ways.

Rule: a version that does not serve is never shown as if it did.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

# Bounds of the other figures, and how they were counted.
_FOR_PROGRAMS = ("_low", "_high", "block")


def model(name: str, state: Mapping[str, Any]) -> str:
    """One model of a device, from its `ModelState`: what serves, and what became of the update."""
    version, target = state.get("version"), state.get("target")
    update: str = state.get("state", "idle")
    why = f": {state['reason']}" if state.get("reason") else ""
    if target in (None, version):
        return f"{name} {version or 'does not serve'} ({_words(update)}{why})"
    serves = f"{version} serves" if version else "none serves"
    if update in ("rolled_back", "failed"):
        return f"{name} {serves}, {target} {_words(update)}{why}"
    return f"{name} {serves}, {target} {step(update, state.get('progress'))}{why}"


def step(update: str, progress: float | None) -> str:
    """A state of an update, and how far it has come."""
    return _words(update) if progress is None else f"{_words(update)} {int(progress * 100)} %"


def figures(measured: Mapping[str, float]) -> str:
    """What a canary measured."""
    told = [
        f"{_words(name)} {value:.4g}"
        for name, value in measured.items()
        if not name.endswith(_FOR_PROGRAMS)
    ]
    return ", ".join(told)


def moment(at_ms: int) -> str:
    """A time, in UTC to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_ms / 1000))


def seen(device: Mapping[str, Any]) -> str:
    """Whether a device is there, and if not, when it was last heard of."""
    if device["online"]:
        return "online"
    gone = "revoked" if device.get("revoked") else "offline"
    return f"{gone}, last seen {moment(device['last_seen_ms'])}"


def _words(code: str) -> str:
    return code.replace("_", " ")
