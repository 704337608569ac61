"""Library: what engines share about the libraries that they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edgekit.errors import EngineError, EngineNotInstalled

Options = TypeVar("Options", bound=msgspec.Struct)


def parsed(options: Mapping[str, Any], kind: type[Options], *, engine: str) -> Options:
    """Check a variant's options, raising `EngineError` that names the wrong one."""
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as e:
        raise EngineError(f"options of engine {engine} are not valid: {e}") from e


def version_of(distribution: str, *, missing: EngineNotInstalled) -> str:
    """Version of a library here, found without importing it, raising `missing` without one."""
    found = installed(distribution)
    if found is None:
        raise missing
    return found


def installed(distribution: str) -> str | None:
    """Version of a distribution here, found without importing it; None without one."""
    from importlib import metadata  # a worker process never asks, and saves 2 MB

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def not_installed(engine: str, *, hint: str) -> EngineNotInstalled:
    """That an engine's library is not here, and what brings it."""
    return EngineNotInstalled(f"engine {engine} is not on this machine", hint=hint)
