"""Pins: which versions of what a tool chain is asked for, by its lock."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgekit.errors import ToolChainMissing
from edgekit_converters.toolchains import toolchain
from edgekit_converters.toolchains.environments import lock_sha256, python_of

_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)
_WANTED = re.compile(r"^([A-Za-z0-9][\w.-]*)", re.MULTILINE)


def chains_for(chains: Sequence[str], form: str) -> tuple[str, ...]:
    """The tool chains of a target that a source of this format needs."""
    return tuple(name for name in chains if form == "onnx" or not toolchain(name).onnx_only)


def versions(chains: Sequence[str]) -> dict[str, str]:
    """Versions by distribution of what tool chains are made of; a program's identity is its file's.

    Named are what each chain is asked for, not what that in turn needs: the lock has both, and its
    digest is the tool chain's identity.

    Raises:
        ToolChainMissing: a program is not on PATH.
    """
    found: dict[str, str] = {}
    for name in chains:
        chain = toolchain(name)
        if chain.python is None:
            found[chain.program or name] = f"sha256:{lock_sha256(name)}"
            continue
        pinned = dict(_PIN.findall(chain.lock_file.read_text()))
        wanted = chain.lock_file.with_suffix(".in").read_text()
        found |= {own: pinned[own] for own in _WANTED.findall(wanted) if own in pinned}
    return found


def not_installed(chains: Sequence[str]) -> str | None:
    """Why tool chains cannot be used here, and the command that changes it; None where they can."""
    try:
        for name in chains:
            python_of(name)
    except ToolChainMissing as e:
        return e.with_hint
    return None
