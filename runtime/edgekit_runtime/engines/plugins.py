"""Execution providers that come in packages of their own, beside a plain onnxruntime.

onnxruntime loads such a library when it is asked to, once in a process; its devices then stand
beside those of the providers that are built in.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from threading import Lock
from typing import Any

from edgekit.errors import EngineError, EngineNotInstalled

PACKAGES: Mapping[str, str] = {"QNNExecutionProvider": "onnxruntime_qnn"}
"""The package that brings a provider, by the provider's name."""

_registering = Lock()
_registered: set[str] = set()


def is_plugin(ort: Any, name: str) -> bool:
    """Whether a provider has to be loaded: onnxruntime itself does not have it."""
    # One that was loaded is listed with those that onnxruntime has, and still opened as a plugin.
    there = name in ort.get_available_providers() and name not in _registered
    return name in PACKAGES and not there


def devices(ort: Any, name: str) -> list[Any]:
    """The devices of a provider, whose library is loaded where it is not yet.

    Raises:
        EngineNotInstalled: the provider's package is not on this machine.
        EngineError: its library cannot be loaded, or finds no device here.
    """
    with _registering:
        found = _devices(ort, name)
        if not found:
            _register(ort, name)
            found = _devices(ort, name)
    if not found:
        raise EngineError(f"{name} finds no device on this machine")
    return found


def _register(ort: Any, name: str) -> None:
    package = PACKAGES[name]
    try:
        library = import_module(package).get_library_path()
    except ImportError as e:
        raise EngineNotInstalled(
            f"{name} is not on this machine: {e}", hint=f"pip install {package.replace('_', '-')}"
        ) from e
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as e:  # each of onnxruntime's errors is a class of its own
        raise EngineError(f"{name} cannot be loaded from {library}: {e}") from e
    _registered.add(name)


def _devices(ort: Any, name: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == name]
