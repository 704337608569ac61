"""Child: a converter that runs in a process of its own, with limits of time and memory.

What converts a model brings hundreds of megabytes and may crash on a hostile file. It runs in an
interpreter that is gone before the search begins. A converter is a program that gets two paths: the
file to read, and the ONNX file to write. Beside the latter it leaves a reply as JSON.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgekit.errors import BuildError, ModelError
from edgekit.structs import Strict

TIME_LIMIT_S = 600.0
# Address space: torch maps some gigabytes that it never touches, and holds a model several times.
MEMORY_BASE_BYTES, MEMORY_PER_SOURCE_BYTE = 12 << 30, 8
_MAX_REPLY_BYTES = 1 << 20
_LAST_BYTES = 500
_SAME_EACH_TIME = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Reply(Strict, frozen=True, kw_only=True):
    """What a converter says.

    Attributes:
        tools: versions of the distributions that had a hand, by name.
        error: why there is no model; empty where there is one.
        hint: what to do next.
        missing: whether a distribution is missing, rather than the model wrong.
    """

    tools: dict[str, str] = {}
    error: str = ""
    hint: str | None = None
    missing: bool = False


def convert(
    program: Path,
    source: Path,
    target: Path,
    *options: str,
    interpreter: str,
    what: str,
    time_limit_s: float = TIME_LIMIT_S,
) -> Mapping[str, str]:
    """Run a converter; the versions of the distributions that had a hand.

    Args:
        program: a Python file that imports nothing of edgekit, so that `interpreter` may be that
            of another environment.
        what: names the source in messages.

    Raises:
        ModelError: the model cannot be converted, or takes more time or memory than allowed.
        BuildError: a distribution is missing.
    """
    # -P: a module beside the program is not to stand in for an installed one.
    command = [interpreter, "-P", str(program), str(source), str(target), *options]
    log_file = target.with_suffix(".log")
    memory_bytes = MEMORY_BASE_BYTES + MEMORY_PER_SOURCE_BYTE * source.stat().st_size
    status = _run(
        command,
        log_file=log_file,
        time_limit_s=time_limit_s,
        memory_limit_bytes=memory_bytes,
        what=what,
    )
    reply = _reply(target.with_suffix(".json"))
    if reply is None:
        died = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        raise ModelError(
            f"{what} could not be converted: the converter ended with {died}: {_last(log_file)}",
            hint="export it to ONNX yourself, and build from that",
        )
    if reply.missing:
        raise BuildError(f"{what} cannot be converted: {reply.error}", hint=reply.hint)
    if reply.error:
        raise ModelError(f"{what} {reply.error}", hint=reply.hint)
    return reply.tools


def _run(
    command: Sequence[str],
    *,
    log_file: Path,
    time_limit_s: float,
    memory_limit_bytes: int,
    what: str,
) -> int:
    """Start, limit and wait; the exit status, negative for a signal."""
    try:
        with (
            log_file.open("wb") as log,
            subprocess.Popen(
                command,
                cwd=log_file.parent,
                env=os.environ | _SAME_EACH_TIME,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            ) as process,
        ):
            try:
                limit = memory_limit_bytes, memory_limit_bytes
                resource.prlimit(process.pid, resource.RLIMIT_AS, limit)
                process.wait(time_limit_s)
            except subprocess.TimeoutExpired as e:
                raise ModelError(
                    f"{what} was not converted within {time_limit_s:g} s",
                    hint="export it to ONNX yourself, and build from that",
                ) from e
            finally:
                process.kill()
    except OSError as e:
        raise BuildError(f"{command[0]} cannot be started: {e.strerror}") from e
    return process.returncode


def _reply(path: Path) -> Reply | None:
    """What the converter left; None where it died before."""
    try:
        if path.stat().st_size > _MAX_REPLY_BYTES:
            return None
        return msgspec.json.decode(path.read_bytes(), type=Reply)
    except (OSError, msgspec.MsgspecError):
        return None


def _last(log_file: Path) -> str:
    """The last line of what the converter wrote to stderr."""
    with log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - _LAST_BYTES))
        lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
