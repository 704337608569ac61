"""`reload`: a model closed and opened anew, or the configuration read anew.

A model's bundle is checked, opened and probed again, and takes the place of what serves when that
went well; else what serves serves on. Of the configuration, the telemetry interval holds at once;
what else differs is named, and takes a restart.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgekit.control import Reload
from edgekit.errors import ConfigError
from edgekit_runtime.config import Config
from edgekit_runtime.control.hands import Hands, Wait
from edgekit_runtime.control.kinds import set_interval

INTERVAL = "fleet.telemetry_interval_s"


def run(args: Reload, hands: Hands, _: Wait) -> dict[str, Any]:
    """For a model its `version`; for the configuration what is `applied`, and what is `waiting`."""
    if args.model is not None:
        return _model(args.model, hands)
    new = hands.reread()
    if new is None:
        raise ConfigError("this daemon was given no configuration file")
    changed = differences(hands.config, new)
    applied: list[str] = []
    if new.fleet is not None and set_interval.kept_s(hands) is None:
        hands.set_interval(new.fleet.telemetry_interval_s)
        applied = [name for name in changed if name == INTERVAL]
    waiting = [name for name in changed if name not in applied]
    return {"applied": applied, "waiting": waiting}


def differences(old: Config, new: Config) -> list[str]:
    """Fields that differ, as `section.field`, in the order of their names."""
    before, after = _flat(old), _flat(new)
    return sorted(name for name in {**before, **after} if before.get(name) != after.get(name))


def _flat(config: Config) -> dict[str, object]:
    found: dict[str, object] = {}
    for section in config.__struct_fields__:
        held = getattr(config, section)
        if held is None:
            continue
        for field in held.__struct_fields__:
            found[f"{section}.{field}"] = getattr(held, field)
    return found


def _model(model: str, hands: Hands) -> dict[str, Any]:
    hands.repository.reload(model)
    served = hands.models.find(model)
    return {
        "model": model,
        "version": served.version,
        "variant": served.default.name,
        "engine": f"{served.variant.engine} {served.engine_version}",
        "golden": msgspec.to_builtins(served.probe),
    }
