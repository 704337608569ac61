"""Addresses to listen on, and which requests were meant for them.

A page in a browser on the board can reach loopback ports, and by DNS rebinding under a name of its
own: on loopback the `Host` must be an address or a name that no stranger can own, and an `Origin`
from elsewhere is refused everywhere.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from edgekit.errors import UsageError
from edgekit.structs import Strict


class Tcp(Strict, frozen=True):
    """A host (address or name) and a port; port 0 lets the system choose.

    Attributes:
        is_tls: whether TLS is spoken there.
    """

    host: str
    port: int
    is_tls: bool = False

    def __str__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.authority}"

    @property
    def authority(self) -> str:
        """`HOST:PORT`, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


class Unix(Strict, frozen=True):
    """A Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = Tcp | Unix


def parse(text: str) -> Tcp:
    """Read `HOST:PORT` or `[IPv6]:PORT`, raising `UsageError` where it is neither."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise UsageError(
            f"{text!r} is not an address to listen on", hint="write HOST:PORT, as in 127.0.0.1:8500"
        )
    return Tcp(host, int(port))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`, as far as its spelling tells."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # A socket for both families shows an IPv4 peer so: ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def may_speak(listener: Address, *, host: str | None, origin: str | None) -> bool:
    """Whether a request with these headers was meant for this listener."""
    if isinstance(listener, Unix):
        return True
    if origin is not None and not is_loopback(_name(origin.partition("://")[2])):
        return False
    if host is None or not listener.is_loopback:
        return True
    name = _name(host)
    return name in ("localhost", listener.host) or _is_address(name)


def _name(authority: str) -> str:
    """Host of `host:port`, lower case, without brackets; empty where there is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
