"""Unit: the daemon as a service of systemd, closed off from all that it does not need.

The daemon writes to its state folder and its sockets, and to nothing else: the root file system may
be read-only. It has no capability and gains none. The manager starts it anew however it ends, at
one start in ten seconds, for ever: a board in the field has nobody who would do it by hand. Only a
configuration that is wrong is not tried again, because that takes somebody in any case.

Sources: systemd.exec(5), systemd.service(5), systemd.resource-control(5). Options are those that
systemd 249 (Ubuntu 22.04) knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.structs import Strict
from edgekit_runtime.install.access import Access

NAME = "edgekitd.service"
FOLDER = Path("/etc/systemd/system")

_STATE, _RUN = Path("/var/lib"), Path("/run")
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - named, and not written to
# What stands in a unit without quotes, escapes and specifiers.
_PLAIN = re.compile(r"/[A-Za-z0-9/._+@:-]*\Z")

_HEAD = """\
[Unit]
Description=edgekit: serves bundles, updates and reports
Documentation=man:systemd.service(5)
After=network.target time-set.target
# A board must come back by itself: starts are spaced by RestartSec, and never given up.
StartLimitIntervalSec=0
RequiresMountsFor={state}
"""
_SERVICE = """\
[Service]
Type=notify
NotifyAccess=main
ExecStart={program} --config {config}
User={user}
Group={user}
Restart=always
RestartSec=10
# But what is wrong with a configuration the next start would find again.
RestartPreventExitStatus=CONFIG
# Opening large models at the start takes time.
TimeoutStartSec=600
TimeoutStopSec=60
# Signs of life stop where the loop or a thread of the daemon does.
WatchdogSec=60
# A worker that is ended for its memory is begun anew by the daemon itself.
OOMPolicy=continue
MemoryHigh={memory_high}
MemoryMax={memory_max}
TasksMax=512
LimitNOFILE=65536
"""
_CLOSED = """\
# What it writes: its state and its sockets. All else is read-only to it.
ProtectSystem=strict
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
# What it may do.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0027
"""
_INSTALL = """\
[Install]
WantedBy=multi-user.target
"""


class Service(Strict, frozen=True, kw_only=True):
    """What decides the unit.

    Attributes:
        program: `edgekitd` on the board.
        writes: folders beside the state folder that the daemon writes to, those of its sockets.
        reads: further files that it reads, which may lie in somebody's home.
        memory_high: where the kernel begins to hold it back, as `MemoryHigh=` takes it.
        memory_max: what it may never exceed.
    """

    program: Path
    config: Path
    state: Path
    user: str
    access: Access
    writes: tuple[Path, ...] = ()
    reads: tuple[Path, ...] = ()
    memory_high: str = "70%"
    memory_max: str = "80%"


def text(service: Service) -> str:
    """The unit file.

    Raises:
        UsageError: a path holds characters that a unit gives a meaning to, or is not absolute.
    """
    for path in _paths(service):
        if _PLAIN.match(str(path)) is None or ".." in path.parts:
            raise UsageError(
                f"{path} cannot stand in a unit: paths there are absolute, of letters, digits and"
                " ._+@:-",
                hint="choose another place",
            )
    parts = (
        _HEAD.format(state=service.state),
        _SERVICE.format(
            program=service.program,
            config=service.config,
            user=service.user,
            memory_high=service.memory_high,
            memory_max=service.memory_max,
        )
        + _lines(_folders(service))
        + _CLOSED
        + _lines(_home(service))
        + _lines(_devices(service.access)),
        _INSTALL,
    )
    return "\n".join(parts)


def managed(folder: Path, *, root: Path) -> str | None:
    """A folder as `StateDirectory=` and its like name it; None where they cannot make it."""
    return str(folder.relative_to(root)) if root in folder.parents else None


def _paths(service: Service) -> tuple[Path, ...]:
    return (service.program, service.config, service.state, *service.writes, *service.reads)


def _lines(lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _folders(service: Service) -> Iterator[str]:
    state = managed(service.state, root=_STATE)
    others = [] if state else [service.state]
    if state:
        yield f"StateDirectory={state}"
        yield "StateDirectoryMode=0750"
    runs = []
    for folder in dict.fromkeys(service.writes):
        name = managed(folder, root=_RUN)
        if name:
            runs.append(name)
        else:
            others.append(folder)
    if runs:
        yield f"RuntimeDirectory={' '.join(runs)}"
        yield "RuntimeDirectoryMode=0755"
    if others:
        yield f"ReadWritePaths={' '.join(map(str, others))}"


def _home(service: Service) -> Iterator[str]:
    """Homes and temporary files are closed, unless something of the service lies there."""
    paths = _paths(service)
    yield f"ProtectHome={'read-only' if _any_below(_HOMES, paths) else 'yes'}"
    yield f"PrivateTmp={'no' if _any_below(_TEMPORARY, paths) else 'yes'}"


def _any_below(folders: Sequence[Path], paths: Sequence[Path]) -> bool:
    return any(folder in (path, *path.parents) for path in paths for folder in folders)


def _devices(access: Access) -> Iterator[str]:
    if not access.makes_code:
        yield "MemoryDenyWriteExecute=yes"
    yield from _nodes(access.nodes)


def _nodes(nodes: Sequence[str] | None) -> Iterator[str]:
    if nodes is None:
        yield "# The names of this accelerator's devices are not known: all that the user may open."
        yield "DevicePolicy=auto"
    elif not nodes:
        yield "PrivateDevices=yes"
    else:
        yield "# The accelerator; other devices are closed."
        yield "DevicePolicy=closed"
        yield from (f"DeviceAllow={node} rw" for node in nodes)
