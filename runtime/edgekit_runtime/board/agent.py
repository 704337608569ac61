"""Agent: what the board runs before it has anything of ours; a script that travels as text.

It needs Python 3.7 and the standard library, so that an old Python can still say how old it is. It
writes below one folder, `$XDG_CACHE_HOME/edgekit/bench` or `~/.cache/edgekit/bench`, where names
are the sha256 of the content, and nowhere else. Standard input brings one request as a line of JSON
and then what belongs to it; replies are lines of JSON on standard output, after `GREETING`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import struct
import sys
import tarfile
import threading
import time
from typing import IO, Any, Callable, Dict  # noqa: UP035 - Python 3.7 has no other

Reply = Callable[[Dict[str, Any]], None]  # noqa: UP006 - this one is read when it runs
GREETING = "edgekit-bench 1"
CHUNK = 1 << 18
# Kept free, because a board whose disk is full does worse things than refuse a benchmark.
RESERVE = 16 << 20
LOCK_TIMEOUT_S = 15
# A link whose cable was pulled sends no end: what is silent for this long has lost its other side.
SILENCE_S = 30


class Refused(Exception):
    """What cannot be done, with the name of an error class of edgekit and a hint."""

    def __init__(self, kind: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.reply = {"error": {"kind": kind, "message": message, "hint": hint}}


class Call:
    """One request, what follows it on standard input, and where replies go."""

    def __init__(self, request: dict[str, Any], stdin: io.BufferedReader, reply: Reply) -> None:
        self.request = request
        self.stdin = stdin
        self.reply = reply


def main(stdin: io.BufferedReader) -> None:
    # Engines print what they like on standard output; the replies keep a line of their own.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def reply(value: dict[str, Any]) -> None:
        out.write(json.dumps(value).encode() + b"\n")
        out.flush()

    out.write(b"\n" + GREETING.encode() + b"\n")
    out.flush()
    call = Call(json.loads(stdin.readline().decode()), stdin, reply)
    try:
        reply(ACTIONS[call.request["do"]](call))
    except Refused as e:
        reply(e.reply)
    except OSError as e:
        reply(Refused("StorageError", f"{e.filename or folder()}: {e.strerror}").reply)


def folder() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "edgekit", "bench")


def end_with_the_link() -> None:
    """End this process when standard input ends or falls silent, whatever an engine is doing."""

    def watch() -> None:
        while os.read(0, 4096):
            signal.alarm(SILENCE_S)
        os._exit(75)

    signal.alarm(SILENCE_S)
    threading.Thread(target=watch, name="link", daemon=True).start()


def place(kind: str, digest: str) -> str:
    """Path of a file or tree by its sha256; the folder above it is made."""
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise Refused("StorageError", f"not a sha256: {digest!r}")
    parent = os.path.join(folder(), kind)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    return os.path.join(parent, digest)


def lock() -> IO[str]:
    """Hold the folder until this process ends: two runs would disturb each other's figures."""
    os.makedirs(folder(), mode=0o700, exist_ok=True)
    file = open(os.path.join(folder(), "lock"), "a")  # noqa: SIM115 - held until the process ends
    until = time.monotonic() + LOCK_TIMEOUT_S
    while not _is_locked(file):
        if time.monotonic() > until:
            raise Refused("EngineError", "another bench uses this board", "wait until it has ended")
        time.sleep(0.1)
    return file


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def facts(_call: Call) -> dict[str, Any]:
    return {
        "architecture": platform.machine(),
        "bits": struct.calcsize("P") * 8,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "glibc": glibc(),
        "device_tree_model": line("/proc/device-tree/model"),
        "processor": field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count() or 1,
        "memory_mb": megabytes(field("/proc/meminfo", "MemTotal")),
        "system": field("/etc/os-release", "PRETTY_NAME", "="),
        "kernel": platform.release(),
    }


def glibc() -> str | None:
    try:
        found = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        return None
    return found.split()[-1] if found else None


def line(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(200).decode("utf-8", "replace").strip("\0 \n") or None
    except OSError:
        return None


def field(path: str, name: str, separator: str = ":") -> str | None:
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return None
    for row in text.splitlines():
        key, _, value = row.partition(separator)
        if key.strip() == name:
            return value.strip().strip('"') or None
    return None


def megabytes(text: str | None) -> int | None:
    words = (text or "").split()
    return int(words[0]) // 1024 if words and words[0].isdigit() else None


def missing(call: Call) -> dict[str, Any]:
    wanted = call.request["wanted"]
    return {"missing": [w for w in wanted if not os.path.exists(place(w["kind"], w["sha256"]))]}


def put(call: Call) -> dict[str, Any]:
    """Take a file from where an earlier attempt ended; a tree is unpacked once it is whole."""
    held = lock()
    kind, digest, size = call.request["kind"], call.request["sha256"], call.request["size_bytes"]
    target = place(kind, digest)
    part = target + ".part"
    there = os.path.getsize(part) if os.path.exists(part) else 0
    if there > size:
        os.unlink(part)
        there = 0
    room(os.path.dirname(part), size - there + call.request["unpacked_bytes"])
    call.reply({"offset": there})
    left = size - there
    with open(part, "ab") as file:
        while left:
            signal.alarm(SILENCE_S)
            data = call.stdin.read1(min(left, CHUNK))
            if not data:
                raise Refused("LinkError", f"the link ended {left} bytes too early")
            file.write(data)
            left -= len(data)
        # A slow card may take its time from here on, and nothing more is awaited.
        signal.alarm(0)
        file.flush()
        os.fsync(file.fileno())
    if sha256(part) != digest:
        os.unlink(part)
        raise Refused("IntegrityError", "what arrived is not what was sent", "try again")
    if call.request["unpacked_bytes"]:
        unpack(part, target)
        os.unlink(part)
    else:
        os.rename(part, target)
    held.close()
    return {"done": True}


def room(path: str, wanted: int) -> None:
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free < wanted + RESERVE:
        raise Refused(
            "StorageError",
            f"{path} has {free / 1e6:.1f} MB free, {(wanted + RESERVE) / 1e6:.1f} MB are needed",
            "make room there, or name another cache with XDG_CACHE_HOME",
        )


def unpack(archive: str, target: str) -> None:
    fresh = target + ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    os.mkdir(fresh, 0o700)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = member.name.split("/")
            if not member.isfile() or member.name.startswith("/") or ".." in parts:
                raise Refused("StorageError", f"the archive holds {member.name!r}")
            path = os.path.join(fresh, *parts)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with open(path, "wb") as file:
                shutil.copyfileobj(source, file)
    # Thousands of files: one sync of all is quicker than one of each.
    os.sync()
    os.rename(fresh, target)


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(CHUNK), b""):
            digest.update(data)
    return digest.hexdigest()


def run(call: Call) -> dict[str, Any]:
    """Hand over to edgekit, as it was carried, with the packages that go before it."""
    end_with_the_link()
    held = lock()
    # The folder that the shell started in must not lend us modules.
    sys.path[:] = [path for path in sys.path if path]
    sys.path[:0] = [place("trees", digest) for digest in call.request["trees"]]
    files = {}
    for name, digest in call.request["files"].items():
        files[name] = place("files", digest)
        if sha256(files[name]) != digest:
            os.unlink(files[name])
            raise Refused("IntegrityError", f"{name} has changed on the board", "try again")
    try:
        from edgekit_runtime.board import there
    except ImportError as e:
        raise Refused(
            "EngineNotInstalled",
            f"{sys.executable} cannot import what a bench needs: {e}",
            "leave --remote-python out, and the packages are carried",
        ) from e
    answer = there.run(json.dumps(call.request["task"]).encode(), files, folder(), call.reply)
    held.close()
    return answer


ACTIONS = {"facts": facts, "missing": missing, "put": put, "run": run}
