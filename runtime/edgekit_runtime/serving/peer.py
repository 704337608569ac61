"""Peer: which local user is at the other end of a connection.

Shared memory and the repository are for programs on this machine only, and a region is for the
user who registered it. A Unix socket tells who connected (SO_PEERCRED, unix(7)). A loopback TCP
connection has both its ends here, and the kernel lists the owner of each in /proc/net/tcp
(proc_net_tcp in the kernel's documentation). There a socket that its owner has closed is listed as
root's, so that only established ones are believed.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path

import msgspec

_CREDENTIALS = struct.Struct("iII")
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end.

    Attributes:
        is_local: a program on this machine.
        uid: of the user it runs as; `None` where that cannot be told.
    """

    is_local: bool
    uid: int | None


STRANGER = Peer(is_local=False, uid=None)


def of(end: socket.socket) -> Peer:
    """Who is at the other end of a connected socket. Reads a file of the kernel for TCP."""
    if end.family == socket.AF_UNIX:
        raw = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return Peer(is_local=True, uid=_CREDENTIALS.unpack(raw)[1])
    try:
        there, here = end.getpeername(), end.getsockname()
    except OSError:
        return STRANGER
    return of_tcp((there[0], there[1]), (here[0], here[1]))


def of_tcp(there: tuple[str, int], here: tuple[str, int]) -> Peer:
    """Who holds the end `there` of the TCP connection to `here`; addresses and ports."""
    try:
        remote, local = ipaddress.ip_address(there[0]), ipaddress.ip_address(here[0])
    except ValueError:
        return STRANGER
    if not (_plain(remote).is_loopback and _plain(local).is_loopback):
        return STRANGER
    # A client may reach an IPv4 address by an IPv6 socket, and is listed there then.
    ends = {
        f"{_hex(a)}:{there[1]:04X} {_hex(b)}:{here[1]:04X}"
        for a, b in ((_plain(remote), _plain(local)), (_mapped(remote), _mapped(local)))
    }
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, its_end, other_end, state, _, _, _, uid, _, inode, *_ = line.split()
            if f"{its_end} {other_end}" in ends and state == _ESTABLISHED and inode != "0":
                return Peer(is_local=True, uid=int(uid))
    return Peer(is_local=True, uid=None)


Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def _plain(address: Ip) -> Ip:
    """An IPv4 address that is written as an IPv6 one, as itself."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _mapped(address: Ip) -> Ip:
    """The form of an address on an IPv6 socket."""
    plain = _plain(address)
    if isinstance(plain, ipaddress.IPv4Address):
        return ipaddress.IPv6Address(f"::ffff:{plain}")
    return plain


def _hex(address: Ip) -> str:
    """An address as the kernel's table has it: words of 32 bits, each in the machine's order."""
    packed = address.packed
    words = struct.unpack(f">{len(packed) // 4}I", packed)
    return struct.pack(f"={len(words)}I", *words).hex().upper()
