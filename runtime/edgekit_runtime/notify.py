"""Notify: what a service tells its manager, by systemd's own protocol and without its library.

Promise: the manager hears `READY=1` when the daemon serves, and a sign of life only while every
part of it that must live does. A daemon whose loop stands still or whose thread is gone falls
silent, and `WatchdogSec` of the unit has it started anew. `systemctl status` says what serves, or
why nothing does. Without a manager all of this is nothing.

Source: sd_notify(3) and sd_watchdog_enabled(3) of systemd; sysexits.h for `EX_CONFIG`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

from edgekit.errors import ConfigError, EdgekitError
from edgekit.messages import ModelState

log = logging.getLogger(__name__)

_SOCKET, _INTERVAL, _PROCESS = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
# One sign of life may come late or be lost.
_SIGNS_PER_INTERVAL = 3


class Misconfigured(ConfigError):
    """A configuration that a start does not get past, said to a service manager.

    The exit code is its own, because no further start would: the unit names it as `CONFIG`.
    """

    exit_code = os.EX_CONFIG


class Notifier:
    """The way to the service manager; sends nothing where there is none.

    Messages are datagrams that never block: a manager that does not listen holds nobody up.

    Args:
        address: of the manager's socket, `@NAME` for an abstract one; None for no manager.
        interval_s: within which the manager wants a sign of life; None where it wants none.
    """

    def __init__(self, address: str | None, *, interval_s: float | None = None) -> None:
        self.interval_s = interval_s
        self._address = address
        self._socket: socket.socket | None = None
        if address is not None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """What the manager left in the environment, which is taken out of it.

        Programs that the daemon starts must not speak for it.
        """
        address = environment.pop(_SOCKET, None)
        interval_us = environment.pop(_INTERVAL, "")
        process = environment.pop(_PROCESS, str(os.getpid()))
        if address is None or address[:1] not in ("/", "@"):
            return cls(None)
        wanted = interval_us.isdigit() and int(interval_us) > 0 and process == str(os.getpid())
        return cls(address, interval_s=int(interval_us) / 1e6 if wanted else None)

    def ready(self) -> None:
        """The daemon serves."""
        self._send("READY=1")

    def watchdog(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon ends in good order."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())}")

    @contextmanager
    def telling_failure(self) -> Iterator[None]:
        """Tell the manager of an error that ends the daemon.

        Raises:
            Misconfigured: for a `ConfigError`, where there is a manager.
            EdgekitError: any other, as it was.
        """
        try:
            yield
        except EdgekitError as e:
            self.status(f"failed: {e.with_hint}")
            if isinstance(e, ConfigError) and self._socket is not None:
                raise Misconfigured(e.message, hint=e.hint) from e
            raise

    def close(self) -> None:
        """Let the socket go."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None or self._address is None:
            return
        # An abstract name begins with a zero.
        abstract = self._address.startswith("@")
        target = f"\0{self._address[1:]}" if abstract else self._address
        try:
            # A path in a message may hold bytes that are not text.
            self._socket.sendto(message.encode(errors="replace"), target)
        except OSError as e:
            log.warning("service manager not reached", extra={"reason": e.strerror or str(e)})


def summary(serving: Sequence[tuple[str, str]], states: Mapping[str, ModelState]) -> str:
    """What a person at the board wants to know first, in one line.

    Args:
        serving: name and version of each model that answers.
        states: of the models that are installed, by name.
    """
    names = {name for name, _ in serving}
    silent = {model: state for model, state in states.items() if model not in names}
    said = ", ".join(f"{name} {version}" for name, version in serving)
    parts = [f"serves {said or 'nothing'}"]
    parts += [
        f"{model} does not ({state.reason or state.state})" for model, state in silent.items()
    ]
    return "; ".join(parts)


async def keep_alive(
    notifier: Notifier, parts: Mapping[str, Callable[[], bool]], *, says: Callable[[], str]
) -> None:
    """Send signs of life from the running loop, until cancelled, while every part lives.

    Returns at once where the manager wants none. The loop itself is the part that need not be
    named: where it stands still, nothing is sent.

    Args:
        parts: name to whether it lives (`Thread.is_alive`), asked on the loop: an answer must not
            wait.
        says: the line for `systemctl status` while all is well, sent when it has changed.
    """
    if notifier.interval_s is None:
        return
    silent: tuple[str, ...] = ()
    said = ""
    while True:
        dead = tuple(name for name, lives in parts.items() if not lives())
        if not dead:
            notifier.watchdog()
        elif dead != silent:
            log.error("no sign of life is sent any more", extra={"dead": ", ".join(dead)})
        silent = dead
        text = f"not alive: {', '.join(dead)}" if dead else says()
        if text != said:
            notifier.status(text)
        said = text
        await asyncio.sleep(notifier.interval_s / _SIGNS_PER_INTERVAL)
