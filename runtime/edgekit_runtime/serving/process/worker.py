"""Worker: a child process, the doorbell between it and us, and the memory that both see.

It is started as a fresh interpreter, never by fork alone: a fork of a program with threads may hold
their locks for ever. Whatever becomes of it, nothing of it stays: no zombie, descriptor or page.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

from edgekit.errors import WorkerLost
from edgekit_runtime.serving.process.arena import Arena
from edgekit_runtime.serving.process.limits import WorkerLimits
from edgekit_runtime.serving.process.messages import PACKET_BYTES, REST, Answer, decode_answer

LOOK_S = 0.1
END_S = 5.0
_STDERR = 2
_KILLED = "if nobody killed it, the board ran out of memory: see dmesg"
_ENVIRONMENT = {
    # Modules come from where ours do, never from the folder we were started in.
    "PYTHONSAFEPATH": "1",
    # Else glibc learns to keep large pieces, and what an engine frees never reaches the system.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}
_MODULE = "edgekit_runtime.serving.process.child"


class Worker:
    """A child process that waits for questions.

    Args:
        name: of what it runs, for messages.
        limits: what it may take.

    Attributes:
        arena: shared with it.
        doorbell: our end.
        pid: of the child.
    """

    def __init__(self, *, name: str, limits: WorkerLimits) -> None:
        self.name = name
        self.limits = limits
        with ExitStack() as undo, ExitStack() as given:
            self.arena = Arena(limits.arena_bytes)
            undo.callback(self.arena.close)
            given.callback(self.arena.close_descriptor)
            self.doorbell, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.doorbell.close)
            given.callback(theirs.close)
            lifeline, self._lifeline = os.pipe()
            undo.callback(os.close, self._lifeline)
            given.callback(os.close, lifeline)
            inherited = (theirs.fileno(), self.arena.descriptor, lifeline)
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, *map(str, inherited)],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                # Standard output is for results of commands; engines like to chat there.
                stdout=_STDERR,
                # Ctrl-C in a terminal goes to a whole session. The child ends after its requests.
                start_new_session=True,
                env={**os.environ, **_ENVIRONMENT},
            )
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self.pid = self._process.pid
            # Readable when the child has ended: what an event loop can wait for.
            self.ended = os.pidfd_open(self.pid)
            undo.pop_all()
        self._packet = memoryview(bytearray(PACKET_BYTES))
        self._look_at = 0.0
        self._closed = False

    def say(self, packet: bytes) -> None:
        """Send a packet, raising `OSError` where the child is gone."""
        self.doorbell.send(packet)

    def heard(self) -> Answer | None:
        """The next answer; `None` where the child is gone. Does not wait when that was set so."""
        try:
            length = self.doorbell.recv_into(self._packet)
        except ConnectionResetError:
            return None
        return decode_answer(self._packet[:length]) if length else None

    def rest(self) -> None:
        """Have the child give memory back that only runs need, with the next one."""
        with suppress(OSError):  # it is gone, which whoever asks it next is told
            self.say(REST)

    def ask(self, packet: bytes, *, limit_s: float) -> Answer:
        """Send a packet and wait for the answer.

        Raises:
            WorkerLost: the child died, hung for longer than `limit_s`, or grew too large.
        """
        try:
            self.say(packet)
        except OSError as e:
            raise self.lost(self.end()) from e
        until = time.monotonic() + limit_s
        poll = select.poll()
        poll.register(self.doorbell, select.POLLIN)
        there = False
        while not there:
            there = bool(poll.poll(LOOK_S * 1000))
            wrong = self.excess()
            if wrong is None and not there and time.monotonic() > until:
                wrong = hung(limit_s)
            if wrong is not None:
                self.end(kill=True)
                raise self.lost(wrong)
        answer = self.heard()
        if answer is None:
            raise self.lost(self.end())
        return answer

    def lost(self, how: str) -> WorkerLost:
        """The error that tells so."""
        by_kernel = how.endswith("(SIGKILL)")
        return WorkerLost(f"{self.name}: its process {how}", hint=_KILLED if by_kernel else None)

    def excess(self) -> str | None:
        """By what the child exceeds its memory, in words; looked at now and then."""
        now = time.monotonic()
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_S
        return self.limits.excess(self.pid)

    def hang_up(self) -> None:
        """Ask the child to end when it has answered. Returns at once."""
        with suppress(OSError):
            self.doorbell.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End the child, whatever it does. Returns at once."""
        self._process.kill()

    def how_it_ended(self) -> str | None:
        """In words; `None` where it still runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"ended by itself with status {code}"
        # Real-time signals have numbers only.
        names = [f" ({known.name})" for known in signal.Signals if known == -code]
        return f"died: signal {-code}{''.join(names[:1])}"

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the child's end, from any thread; whether it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.poll() is not None

    def end(self, *, kill: bool = False) -> str:
        """See the child's end, forced if need be, and give everything back; how it ended."""
        if kill:
            self.kill()
        self.hang_up()
        if not self.wait(END_S):
            self.kill()
            self.wait(END_S)
        self.release()
        return self.how_it_ended() or "does not end"

    def release(self) -> None:
        """Close our ends; the child has ended, or does so now. The arena stays with its arrays."""
        if not self._closed:
            self._closed = True
            self.doorbell.close()
            os.close(self.ended)
            os.close(self._lifeline)
            self.arena.close()
            # Whoever opened us may remember us for long.
            self._packet = memoryview(b"")


def hung(limit_s: float) -> str:
    """How a child was lost that did not answer."""
    return f"hung: no answer within {limit_s:g} s"
