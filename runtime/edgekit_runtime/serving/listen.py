"""Listen: what every listener needs of the system: a free path, and descriptors for its clients."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import stat
from pathlib import Path

from edgekit.errors import ServingError
from edgekit_runtime.serving.address import Address

SOCKET_MODE = 0o660
# gRPC accepts its connections itself, and closes those beyond.
GRPC_CONNECTIONS = 128
# For models, workers, files under way, the fleet's link and gRPC; HTTP's clients never take these.
RESERVED_DESCRIPTORS = 256 + GRPC_CONNECTIONS


def clear(path: Path) -> None:
    """Remove the socket of a server that is gone.

    Raises:
        OSError: a server answers there, or what stands there is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.connect(str(path))
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink(missing_ok=True)


async def bind(host: str, port: int, *, backlog: int) -> list[socket.socket]:
    """Sockets that listen at every address of a host, at the same port, and do not block.

    Raises:
        OSError: an address is taken, or the host has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    opened: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            # Port 0 lets the system choose, once for all of them.
            chosen = opened[0].getsockname()[1] if opened and port == 0 else address[1]
            end = socket.create_server(
                (address[0], chosen, *address[2:]),
                family=socket.AddressFamily(family),
                backlog=backlog,
            )
            end.setblocking(False)
            opened.append(end)
    except BaseException:
        for end in opened:
            end.close()
        raise
    return opened


def cannot_listen(address: Address, error: OSError) -> ServingError:
    """Why there is no listener at an address."""
    # EPROTOTYPE: another kind of Unix socket answers there.
    if error.errno in (errno.EADDRINUSE, errno.EPROTOTYPE):
        return ServingError(
            f"{address} is in use by another program",
            hint="stop it, or choose another address: --listen or --unix, [serve] of a device",
        )
    return ServingError(f"cannot listen on {address}: {error.strerror or error}")


def room_for(connections: int) -> int:
    """How many connections there may be, after asking the system for as many.

    A process's soft limit of descriptors is raised as far as they need and the hard limit lets it,
    and not beyond: programs that it starts inherit the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else places(connections, descriptors=soft)


def places(connections: int, *, descriptors: int) -> int:
    """How many of so many connections a limit of descriptors has room for.

    However few there are, half of them are for clients.
    """
    return min(connections, max(descriptors - RESERVED_DESCRIPTORS, descriptors // 2))
