"""Renewing locks: `python -m edgekit_converters.toolchains.renew [--upgrade] [NAME…]`.

What a tool chain wants stands in `locks/NAME.in`; what is left out of it, and why, in
`locks/NAME.overrides`. A lock names no index, so that every workstation uses its own; the hashes
say that it got the same files. Only wheels are locked: an installation runs nobody's build script.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from edgekit.errors import BuildError, EdgekitError
from edgekit_converters.toolchains import LOCKS, TOOLCHAINS, ToolChain, toolchain, uv


def compile_command(chain: ToolChain, *, upgrade: bool) -> list[str]:
    """What pins a tool chain's requirements when it is run in the folder of locks."""
    overrides = f"{chain.name}.overrides"
    return [
        *uv.command(),
        "pip",
        "compile",
        "--quiet",
        "--no-config",
        "--generate-hashes",
        "--only-binary=:all:",
        "--no-emit-index-url",
        "--no-emit-build-options",
        f"--python-version={chain.python}",
        f"--python-platform={chain.platform}",
        f"--custom-compile-command=python -m edgekit_converters.toolchains.renew {chain.name}",
        *([f"--overrides={overrides}"] if (LOCKS / overrides).is_file() else []),
        *(["--upgrade"] if upgrade else []),
        f"--output-file={chain.name}.txt",
        f"{chain.name}.in",
    ]


def renew(chain: ToolChain, *, upgrade: bool) -> None:
    """Write `locks/NAME.txt`, raising `BuildError` where requirements contradict each other.

    Args:
        upgrade: take the newest versions that fit, rather than keep those of the present lock.
    """
    command = compile_command(chain, upgrade=upgrade)
    done = subprocess.run(command, cwd=LOCKS, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"tool chain {chain.name} cannot be locked: {done.stderr.strip()}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Renew the locks that are named, or all."""
    locked = [name for name, chain in TOOLCHAINS.items() if chain.python is not None]
    parser = argparse.ArgumentParser(description="Pin the requirements of tool chains.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(locked)}")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    given = parser.parse_args(arguments)
    try:
        for name in given.names or locked:
            renew(toolchain(name), upgrade=given.upgrade)
    except EdgekitError as e:
        sys.exit(f"error: {e.message}\nhint: {e.hint}" if e.hint else f"error: {e.message}")


if __name__ == "__main__":
    main()
