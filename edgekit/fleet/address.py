"""Address: where a server listens, and the folder it keeps for itself while it runs."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
from pathlib import Path
from typing import NamedTuple

from edgekit.errors import LinkError, StorageError, UsageError


class Address(NamedTuple):
    """`HOST:PORT` that a server listens on; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT` (`[::1]:1883` for IPv6), raising `UsageError` for anything else."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise UsageError(f"{text!r} is not HOST:PORT", hint="for example 127.0.0.1:1883")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def require_loopback(self, *, what: str, insecure: bool) -> None:
        """Refuse to open an unprotected server to a network unless that was asked for by name."""
        if not self.is_loopback and not insecure:
            raise UsageError(
                f"{what} would listen on {self}, where others reach it without a password",
                hint="listen on 127.0.0.1, or add --insecure on a network that you trust",
            )

    def bind(self, *, what: str, option: str = "--listen") -> socket.socket:
        """A socket bound to the address that `option` gave.

        Raises `LinkError` where the port is taken.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self.host, self.port))
        except OSError as e:
            bound.close()
            if e.errno == errno.EADDRINUSE:
                raise LinkError(
                    f"{what} cannot listen on {self}: the port is in use",
                    hint=f"stop what listens there, or name another port with {option}",
                ) from e
            raise LinkError(f"{what} cannot listen on {self}: {e.strerror}") from e
        return bound


class Claim:
    """A folder that one process at a time may use; the lock ends with the process.

    Args:
        folder: made where it is missing.
        what: who uses it, for messages.
        instead: what else to do, for messages.
    """

    def __init__(
        self, folder: Path, *, what: str, instead: str = "name another folder with --state"
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(
                folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
        except OSError as e:
            raise StorageError(
                f"state folder {folder} cannot be used: {e.strerror}", hint=instead
            ) from e
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._descriptor)
            raise LinkError(
                f"another {what} uses the state folder {folder}",
                hint=f"stop it, or {instead}",
            ) from e

    def release(self) -> None:
        os.close(self._descriptor)
