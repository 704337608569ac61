"""The process that compiles: it opens the engine once, writes how it went, and ends.

A compiler may take all memory or crash, and its time cannot be bounded from within. So it runs
here, below the daemon in priority, the first to go where memory runs out, and gone with the daemon.

Request on stdin, JSON: `engine`, `artifact`, `options`, `folder` for what is made, `reply` for the
file that says how it went: `{"error": null}`, or a message and a hint.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import EdgekitError, EngineError
from edgekit.structs import Strict
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.compiling import Compiles

NICENESS = 10
_PR_SET_PDEATHSIG = 1
_FIRST_TO_GO = "1000"


class Request(Strict, frozen=True, kw_only=True):
    """What is to be compiled.

    Attributes:
        parent: the process that asks; without it there is nobody to compile for.
    """

    engine: str
    artifact: str
    options: dict[str, Any]
    folder: str
    reply: str
    parent: int


class Reply(Strict, frozen=True, kw_only=True):
    """How it went.

    Attributes:
        error: what the engine said; None where it went well.
    """

    error: str | None = None
    hint: str | None = None


def main() -> None:
    """Do what the request on stdin says."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    _be_modest(request.parent)
    try:
        compile_for(request)
        reply = Reply()
    except EdgekitError as e:
        reply = Reply(error=e.message, hint=e.hint)
    Path(request.reply).write_bytes(msgspec.json.encode(reply))


def compile_for(request: Request) -> None:
    """Compile, raising `EngineError` where the engine refused."""
    engine, artifact = ENGINES.get(request.engine), Path(request.artifact)
    found = (
        engine.compilation(artifact, options=request.options)
        if isinstance(engine, Compiles)
        else None
    )
    if found is None:
        raise EngineError(f"{request.engine} compiles nothing of {artifact}")
    found.compile(Path(request.folder))


def _be_modest(parent: int) -> None:
    os.nice(NICENESS)
    with suppress(OSError):  # a container may hide it; then the kernel chooses
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that asked is gone")


if __name__ == "__main__":
    main()
