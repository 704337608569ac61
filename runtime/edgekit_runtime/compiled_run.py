"""Runs one compilation in a process of its own, within a time limit, and tells how it went."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import EngineError
from edgekit_runtime.engines.compile_child import Reply, Request

_POLL_S = 0.2
_TOLD_CHARS = 300
# The child sees the packages that this process sees, wherever they came from.
_PROGRAM = (
    "import sys; sys.path[:] = {paths!r}; from edgekit_runtime.engines.compile_child import main;"
    " main()"
)


class CompileFailed(EngineError):
    """An engine could not compile an artefact on this device."""


class Stopped(Exception):
    """It was ended because nobody wants it any more."""


def run(
    artifact: Path,
    *,
    engine: str,
    options: dict[str, Any],
    folder: Path,
    limit_s: float,
    stopped: Callable[[], bool],
) -> None:
    """Compile an artefact; what is made lies in `folder` then.

    What engine and compiler print is kept beside `folder` while it runs, and its end told where
    they die without a word.

    Args:
        stopped: asked now and then whether to end it.

    Raises:
        CompileFailed: the engine refused, the process died, or it took longer than `limit_s`.
        Stopped: `stopped` said so.
    """
    said, replied = (folder.with_name(f"{folder.name}.{kind}") for kind in ("log", "reply"))
    request = Request(
        engine=engine,
        artifact=str(artifact.absolute()),
        options=options,
        folder=str(folder),
        reply=str(replied),
        parent=os.getpid(),
    )
    try:
        with said.open("w+b") as log:
            code = _run(request, output=log, limit_s=limit_s, stopped=stopped)
            log.seek(0)
            printed = log.read().decode(errors="replace")
        if code != 0 or not replied.is_file():
            raise CompileFailed(
                f"the compiler of {engine} {_ended(code)}{_last_line(printed)}",
                hint="serve another variant; the device may lack memory to compile this one",
            )
        reply = msgspec.json.decode(replied.read_bytes(), type=Reply)
    finally:
        said.unlink(missing_ok=True)
        replied.unlink(missing_ok=True)
    if reply.error is not None:
        raise CompileFailed(reply.error, hint=reply.hint)


def _run(request: Request, *, output: Any, limit_s: float, stopped: Callable[[], bool]) -> int:
    until = time.monotonic() + limit_s
    program = _PROGRAM.format(paths=sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A terminal's ^C reaches the daemon alone, which then ends the child in order.
        start_new_session=True,
    ) as child:
        try:
            _give(child, request)
            while time.monotonic() < until:
                if stopped():
                    raise Stopped
                try:
                    return child.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            child.kill()
    raise CompileFailed(
        f"the compiler of {request.engine} took longer than {limit_s:.0f} s and was ended",
        hint="give it more time, or serve another variant",
    )


def _give(child: subprocess.Popen[bytes], request: Request) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(msgspec.json.encode(request))
        child.stdin.close()
    except BrokenPipeError:
        # It died at once; its exit code says more.
        return


def _ended(code: int) -> str:
    return f"died: signal {-code}" if code < 0 else f"ended with code {code}"


def _last_line(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return f", after: {lines[-1][:_TOLD_CHARS]}" if lines else ""
