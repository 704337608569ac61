"""Kinds: what each command does; one file and one function a kind, one table.

A function takes its arguments, what it may reach, and a way to wait; it gives a JSON object, or
raises an `EdgekitError` that says why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit.control import Kind
from edgekit_runtime.control.hands import Hands, Wait
from edgekit_runtime.control.kinds import (
    benchmark,
    cancel,
    diagnostics,
    logs,
    reload,
    rollback,
    set_interval,
)

# The first argument is the struct that `edgekit.control.ARGUMENTS` names for the kind.
Work = Callable[[Any, Hands, Wait], dict[str, Any]]

TABLE: Mapping[Kind, Work] = {
    "logs": logs.run,
    "diagnostics": diagnostics.run,
    "benchmark": benchmark.run,
    "reload": reload.run,
    "rollback": rollback.run,
    "cancel": cancel.run,
    "set_interval": set_interval.run,
}
