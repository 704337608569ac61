"""SSH: one link to a board, through the system's own `ssh`, and exchanges over it.

The user's configuration holds: keys, agents, jump hosts and host keys are theirs, and the check of
a host key is never switched off. Nothing is asked (`BatchMode`). One connection is shared by all
exchanges. What runs on the board ends with its exchange: its standard input ends, or falls silent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgekit.errors import EdgekitError, EngineError, EngineNotInstalled, LinkError, UsageError
from edgekit.structs import Strict
from edgekit_runtime.board import agent, replies

CONNECT_TIMEOUT_S = 15
LOGIN_TIMEOUT_S = 60
HEARTBEAT_S = 5.0
END_TIMEOUT_S = 10.0
MAX_REPLY_BYTES = 16 << 20
_COMMAND_NOT_FOUND = (126, 127)
_SSH_FAILED = 255
_TOO_OLD = "is too old"
# No single quote and no line break, which shells treat differently.
_BOOT = (
    f'import sys;sys.version_info<(3,7)and sys.exit("Python "+sys.version[:6]+"{_TOO_OLD}");'
    "i=sys.stdin.buffer;exec(i.read(int(i.readline())))"
)


_USER = r"(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.+-]*@)?"
# A name or an IPv4 address, or an IPv6 address in brackets; then a port may follow.
_NAME = re.compile(
    _USER + r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\])"
    r"(:(?P<port>[0-9]{1,5}))?"
)
# A bare IPv6 address, whose colons leave no room for a port.
_ADDRESS = re.compile(_USER + r"(?P<host>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)")


class Destination(Strict, frozen=True, kw_only=True):
    """Where a board is: `host` as ssh takes it, `user@` included, and a port if one was given."""

    host: str
    port: int | None = None


def parse(text: str) -> Destination:
    """Read `[user@]host[:port]`; an IPv6 address with a port stands in brackets.

    Raises:
        UsageError: this is no such name.
    """
    found = _NAME.fullmatch(text) or _ADDRESS.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--device {text!r} is not [user@]host[:port]", hint="for example pi@192.168.1.20"
        )
    user, host, port = found["user"] or "", found["host"].strip("[]"), found.groupdict().get("port")
    if port is not None and not 0 < int(port) < 1 << 16:
        raise UsageError(f"--device {text}: there is no port {port}")
    return Destination(host=user + host, port=None if port is None else int(port))


class Link:
    """A connection to a board, open between `with` and its end.

    Args:
        destination: the board.
        config: another configuration of ssh than the user's own.
    """

    def __init__(self, destination: Destination, *, config: Path | None = None) -> None:
        self.destination = destination
        program = shutil.which("ssh")
        if program is None:
            raise UsageError("there is no ssh here", hint="install OpenSSH's client")
        # A socket's path has at most some 100 bytes, and TMPDIR may be longer than that.
        base = tempfile.gettempdir()
        self._folder = Path(tempfile.mkdtemp("", "edgekit-", base if len(base) < 50 else "/tmp"))  # noqa: S108
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": CONNECT_TIMEOUT_S,
            "ServerAliveInterval": 10,
            "ServerAliveCountMax": 3,
            "ControlPath": self._folder / "link",
            "ControlPersist": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "RequestTTY": "no",
        }
        self._ssh = [program, *(("-F", str(config)) if config else ())]
        if destination.port is not None:
            self._ssh += ["-p", str(destination.port)]
        for name, value in options.items():
            self._ssh += ["-o", f"{name}={value}"]
        self._master: Process | None = None

    def __enter__(self) -> Link:
        # A command that waits for input keeps the connection, and ends it when this process dies.
        self._master = self._start("exec cat", master=True)
        token = secrets.token_hex(16).encode()
        try:
            self._master.write(token + b"\n")
            self._master.skip_to(token, timeout_s=LOGIN_TIMEOUT_S)
        except BaseException as e:
            self.close()
            if isinstance(e, Ended):
                raise _failure(self.destination, e) from e
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and what runs over it."""
        if self._master is not None:
            self._master.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def exchange(
        self, python: str, request: Mapping[str, Any], *, isolated: bool = True
    ) -> Iterator[Exchange]:
        """Start the agent on the board with one request.

        Args:
            python: the board's Python, a name on its PATH or a path.
            request: what `agent` is asked.
            isolated: keeps everything but the standard library of that Python out.

        Raises:
            LinkError: the link was cut, in the block too.
            EngineNotInstalled: there is no such Python.
        """
        flags = "-I -S " if isolated else ""
        command = f"exec {shlex.quote(python)} {flags}-c {shlex.quote(_BOOT)}"
        source = Path(agent.__file__).read_bytes() + b"\nmain(i)\n"
        process = self._start(command, master=False)
        try:
            head = b"%d\n%b%b\n" % (len(source), source, json.dumps(request).encode())
            process.write(head)
            process.skip_to(agent.GREETING.encode(), timeout_s=LOGIN_TIMEOUT_S)
            yield Exchange(process)
        except Ended as e:
            raise _failure(self.destination, e, python=python) from e
        finally:
            process.close()

    def ask(
        self, python: str, request: Mapping[str, Any], *, isolated: bool = True
    ) -> dict[str, Any]:
        """One request with one reply."""
        with self.exchange(python, request, isolated=isolated) as exchange:
            return exchange.reply()

    def _start(self, command: str, *, master: bool) -> Process:
        mode = "yes" if master else "no"
        return Process(
            [*self._ssh, "-o", f"ControlMaster={mode}", "--", self.destination.host, command]
        )


class Exchange:
    """One request to the agent, under way."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def write(self, data: bytes) -> None:
        """Send bytes that belong to the request."""
        self._process.write(data)

    def reply(self) -> dict[str, Any]:
        """The next reply, however long it takes, raising the error that it may be."""
        while (line := self._process.line(timeout_s=HEARTBEAT_S)) is None:
            self._process.write(b"\n")
        return replies.decode(line)


class Ended(Exception):
    """A process of ssh ended or fell silent before it said what was waited for.

    Args:
        code: its exit code; None where it was silent.
        text: the end of its standard error.
    """

    def __init__(self, code: int | None, text: str) -> None:
        super().__init__(f"ssh ended with {code}")
        self.code = code
        self.text = text


class Process:
    """One process of ssh: bytes in, lines out, its standard error kept for messages."""

    def __init__(self, command: list[str]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        # A session of its own: Ctrl-C reaches us alone, and we end what runs on the board in order.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in = self._process.stdin
        self._out = self._process.stdout
        self._buffer = b""

    def write(self, data: bytes) -> None:
        """Send bytes, raising `Ended` where nobody takes them any more."""
        try:
            self._in.write(data)
            self._in.flush()
        except OSError as e:
            # What the other side said before it went tells more than a broken pipe, if it did.
            if b"\n" not in self._buffer and not self._read(0.5):
                raise self._ended() from e

    def line(self, *, timeout_s: float) -> bytes | None:
        """The next line; None where none came in time.

        Raises:
            Ended: there are no more.
        """
        until = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._read(left)
            if len(self._buffer) > MAX_REPLY_BYTES:
                raise LinkError("the board said more in one line than a reply can have")
        found, self._buffer = self._buffer.split(b"\n", 1)
        return found

    def skip_to(self, wanted: bytes, *, timeout_s: float) -> None:
        """Pass over what the board's shell prints at a login."""
        until = time.monotonic() + timeout_s
        while True:
            found = self.line(timeout_s=until - time.monotonic())
            if found is None:
                raise Ended(None, f"no answer within {timeout_s:.0f} s")
            if found.strip() == wanted:
                return

    def close(self) -> None:
        """Tell the other side that this is the end, wait for it, and insist after a while."""
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._out.close()
            self._errors.close()

    def _read(self, timeout_s: float) -> bool:
        """Whether more arrived in time, raising `Ended` at the end of the output."""
        if not select.select([self._out], [], [], max(timeout_s, 0))[0]:
            return False
        data = os.read(self._out.fileno(), 1 << 16)
        if not data:
            raise self._ended()
        self._buffer += data
        return True

    def _ended(self) -> Ended:
        try:
            code: int | None = self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(self._errors.tell() - 4096, 0))
        return Ended(code, self._errors.read().decode("utf-8", "replace"))


def _failure(where: Destination, ended: Ended, *, python: str | None = None) -> EdgekitError:
    """What the end of an ssh means, in words."""
    if python is None or ended.code in (_SSH_FAILED, None):
        return _link_error(where, ended.text)
    last = _last_line(ended.text)
    if last.endswith(_TOO_OLD):
        return EngineNotInstalled(f"{python} on {where.host} is {last}: 3.10 or newer is needed")
    if ended.code in _COMMAND_NOT_FOUND:
        return EngineNotInstalled(
            f"{where.host} has no {python}",
            hint="install Python 3.10 or newer there, or name one with --remote-python",
        )
    if ended.code > 128 or ended.code < 0:
        number = ended.code - 128 if ended.code > 128 else -ended.code
        return EngineError(
            f"the benchmark on {where.host} was ended by signal {number}"
            + (f": {last}" if last else ""),
            hint="an engine that crashes there, or too little memory; see the board's `dmesg`",
        )
    return EngineError(f"{python} on {where.host} ended with {ended.code}: {last}")


def _link_error(where: Destination, text: str) -> LinkError:
    port = f" -p {where.port}" if where.port is not None else ""
    log_in = f"ssh{port} {where.host}"
    if "IDENTIFICATION HAS CHANGED" in text:
        return LinkError(
            f"{where.host} shows another host key than the one that ssh knows",
            hint=f"it may be another machine; if the board is new: ssh-keygen -R, then {log_in}",
        )
    if "Host key verification failed" in text:
        return LinkError(
            f"ssh does not know the host key of {where.host}",
            hint=f"run `{log_in}` once and compare the fingerprint with the board's",
        )
    if "Permission denied" in text or "Too many authentication failures" in text:
        return LinkError(
            f"{where.host} does not let us in: {_last_line(text)}",
            hint=f"a key without a question is needed: ssh-copy-id{port} {where.host}",
        )
    return LinkError(
        f"the link to {where.host} failed: {_last_line(text) or 'it was cut'}",
        hint=f"`{log_in}` must work; then run the same command again, it goes on where it ended",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
