"""Driving: one call of a tool, in the environment of its tool chain, within limits.

A tool is not trusted to end, to stay small, or to say the truth in its exit code. It runs in a
process group of its own that is gone when the call returns, however it returns; its log stays; and
what it was to make is looked for. All that can go wrong comes back as one line that names the tool
chain, what happened and the log. Out of reach is only what a tool starts in a session of its own.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edgekit import storage
from edgekit.errors import BuildError, StorageError, ToolChainMissing
from edgekit.structs import Strict
from edgekit_converters.toolchains import environments, logs, watch
from edgekit_converters.toolchains import toolchain as toolchain_of
from edgekit_converters.toolchains.readable import is_readable

DRIVERS = Path(__file__).parent / "drivers"
_FRAME = Path(__file__).parent / "frame.py"

# What would lead a tool's Python astray, or tell others what is built here.
_DROPPED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS", "VIRTUAL_ENV")
_SET = {
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONUTF8": "1",
    # The log is whole when the tool is killed, and says where it crashed.
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
_LEAST_FREE_BYTES = 1 << 20
_MORE_ROOM = "free space, or set TMPDIR to a folder that has some"
# Short calls are noticed early, long ones cost nothing to watch.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.25


class Limits(Strict, frozen=True, kw_only=True):
    """What one call of a tool may take.

    Attributes:
        time_s: seconds by the clock.
        memory_bytes: memory of all processes of the call together; looked at a few times a second.
        log_bytes: what it may print.
    """

    time_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    memory_bytes: Annotated[int, msgspec.Meta(gt=0)] = 6 << 30
    log_bytes: Annotated[int, msgspec.Meta(gt=0)] = 64 << 20


class LimitBroken(BuildError):
    """A tool took more than it may, or was killed; that says nothing of what it was given."""


class _Reply(Strict, frozen=True, kw_only=True):
    """What `frame.py` leaves: one of the three."""

    done: dict[str, Any] | None = None
    refused: str = ""
    broken: str = ""


def drive(
    toolchain: str,
    request: Mapping[str, Any],
    *,
    driver: str | Path,
    folder: Path,
    produces: Sequence[Path] = (),
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Run a driver; what it replies.

    Args:
        toolchain: whose environment it runs in.
        request: JSON; paths in it are absolute, for the tool starts in a folder of its own.
        driver: of `drivers/`, by name; or the path of another one.
        folder: where that folder is made; it is gone afterwards.
        produces: files that the driver makes. What stands there is removed before, and after a
            failure.

    Raises:
        ToolChainMissing: the tool chain is not ready, or lacks what it is to consist of.
        LimitBroken: the tool took or printed too much.
        BuildError: it refused, died, or left a file of `produces` missing, empty or unreadable.
        StorageError: a folder or the log cannot be written, or the tool left the disk full.
    """
    python = environments.python_of(toolchain)
    program = driver if isinstance(driver, Path) else DRIVERS / f"{driver}.py"
    for path in produces:
        path.unlink(missing_ok=True)
    log = logs.new(toolchain, program.stem, now_s=time.time())
    storage.make_folder(folder)
    with tempfile.TemporaryDirectory(
        dir=folder.absolute(), prefix=f"{toolchain}-", ignore_cleanup_errors=True
    ) as own:
        request_file, reply_file = Path(own, "request.json"), Path(own, "reply.json")
        storage.write(request_file, msgspec.json.encode(request))
        trouble, kind = _run(
            [str(python), str(_FRAME), str(program.absolute()), str(request_file), str(reply_file)],
            toolchain=toolchain,
            folder=Path(own),
            log=log,
            limits=limits,
        )
        reply = None if trouble else _reply(reply_file)
        # What the tool wrote for itself is still there.
        is_full = shutil.disk_usage(own).free < _LEAST_FREE_BYTES
    if reply is not None and reply.broken:
        raise _damaged(toolchain, f"{' '.join(reply.broken.split())}; log: {log}")
    if reply is not None and reply.refused:
        trouble = f"refused: {' '.join(reply.refused.split())}"
    elif not trouble:
        trouble = "ended without a reply" if reply is None else _unmade(produces, log=log)
    if trouble or reply is None or reply.done is None:
        for path in produces:
            path.unlink(missing_ok=True)
        message = f"tool chain {toolchain} {trouble}; log: {log}"
        if is_full or os.strerror(errno.ENOSPC) in trouble:
            # Tools seldom say so, and it says nothing of what they were given.
            raise StorageError(f"{folder} is on a full disk: {message}", hint=_MORE_ROOM)
        raise kind(message)
    return reply.done


def _damaged(name: str, why: str) -> ToolChainMissing:
    """What counts as ready and cannot be used; an installation tries it and makes it again."""
    hint = None
    if toolchain_of(name).python is not None:
        hint = f"edgekit doctor --install {name}"
    return ToolChainMissing(f"tool chain {name} is damaged: {why}", hint=hint)


def _run(
    command: Sequence[str], *, toolchain: str, folder: Path, log: Path, limits: Limits
) -> tuple[str, type[BuildError]]:
    """Run to the end, or to a limit; what went wrong, empty where nothing did, and its kind."""
    try:
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(Path(command[0]), temporary=folder),
                # Its other end closes when this process ends, and takes the group along.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                trouble = _watched(process, log=output.fileno(), limits=limits)
            finally:
                watch.end(process)
    except OSError as e:
        why = f"{e.filename or command[0]} cannot be used: {e.strerror or e}"
        if e.filename == command[0]:
            raise _damaged(toolchain, why) from e
        raise StorageError(why) from e
    if trouble:
        return trouble, LimitBroken
    # Of itself no tool dies so: the machine had no memory left, or somebody ended it.
    was_killed = process.returncode == -signal.SIGKILL
    return _ending(process.returncode, log), LimitBroken if was_killed else BuildError


def _watched(process: subprocess.Popen[bytes], *, log: int, limits: Limits) -> str:
    """Wait for the process; the limit that it broke, empty where it kept all."""
    deadline = time.monotonic() + limits.time_s
    pause_s = _FIRST_PAUSE_S
    while not watch.has_ended(process):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return f"took longer than {limits.time_s:g} s"
        if watch.exceeds(process.pid, limits.memory_bytes):
            return f"grew beyond {_size(limits.memory_bytes)} of memory"
        if os.fstat(log).st_size > limits.log_bytes:
            return f"printed more than {_size(limits.log_bytes)}"
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
    return ""


def _ending(status: int, log: Path) -> str:
    """What a status says; empty for a good one."""
    if status < 0:
        return f"died by signal {-status} ({watch.signal_name(-status)})"
    return f"refused: {logs.last_line(log)}" if status else ""


def _reply(path: Path) -> _Reply | None:
    """What the frame left; None where it left nothing of use."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Reply)
    except (OSError, msgspec.MsgspecError):
        return None


def _unmade(produces: Sequence[Path], *, log: Path) -> str:
    """What is wrong with the files that were to be made; empty where nothing is."""
    for path in produces:
        if not path.is_file():
            return f"wrote no {path.name}: {logs.last_line(log)}"
        if path.stat().st_size == 0:
            return f"wrote an empty {path.name}: {logs.last_line(log)}"
        if not is_readable(path):
            return f"wrote a {path.name} that is no {path.suffix} file: {logs.last_line(log)}"
    return ""


def _environment(python: Path, *, temporary: Path) -> dict[str, str]:
    """This process's variables, with the environment's own programs first on PATH.

    Args:
        temporary: a folder that is removed after the call, also where the tool was killed.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    paths = [str(python.parent), kept.get("PATH", os.defpath)]
    return {**kept, **_SET, "PATH": os.pathsep.join(paths), "TMPDIR": str(temporary)}


def _size(count_bytes: int) -> str:
    gigabytes = count_bytes / (1 << 30)
    return f"{gigabytes:.3g} GB" if gigabytes >= 1 else f"{count_bytes >> 20} MB"
