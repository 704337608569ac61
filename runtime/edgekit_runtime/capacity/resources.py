"""Resources: what a run used of the machine, and by a pure rule which of it ran out.

A process that has one core to itself has run out long before the machine has, so threads count one
by one. Whoever shares the server's cores, the load generator first of all, is named.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekit.structs import Strict

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
# Busy for this share of the time is run out: the rest is what the clock and the kernel take.
FULL_SHARE = 0.85
# Less free memory than this share of the board, and the kernel begins to take pages back.
LOW_MEMORY_SHARE = 0.05

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Moment(Strict, frozen=True, kw_only=True):
    """What was used until one moment.

    Attributes:
        at_s: by a monotonic clock.
        threads_s: CPU seconds by process and thread id.
        machine_s: CPU seconds of the whole machine, and `stolen_s` of its host.
        memory_bytes: the processes' proportional set size.
        free_bytes: memory that could be had; of `total_bytes`.
    """

    at_s: float
    threads_s: dict[tuple[int, int], float]
    machine_s: float
    stolen_s: float
    memory_bytes: int
    free_bytes: int
    total_bytes: int


class Usage(Strict, frozen=True, kw_only=True):
    """What was used between two moments. Cores are CPU seconds a second.

    Attributes:
        cores_allowed: what the server may use, by its affinity and its control group.
        server_cores: of the server with its workers; `loop_cores` of its main thread,
            `worker_cores` of its busiest other thread. None where the server's process is not
            known.
        engine_share: of the time that an engine was running.
        generator_cores: of the load generators, which may spin to be on time.
        other_cores: of everybody else on the machine, its host's share included; and of the
            server where its process is not known.
        memory_bytes: the server's, at the end.
        free_share: of the board's memory, at the end.
        bytes_per_s: requests sent.
        rejected: requests turned away.
    """

    cores: int
    cores_allowed: float
    server_cores: float | None
    loop_cores: float | None
    worker_cores: float | None
    engine_share: float
    generator_cores: float
    other_cores: float
    memory_bytes: int | None
    free_share: float
    bytes_per_s: float
    rejected: int


class RanOut(Strict, frozen=True):
    """The resource that ran out first, and why we say so."""

    resource: str
    why: str


def ran_out(usage: Usage, *, throttled: Sequence[str] = ()) -> RanOut:
    """Which resource a run that misses its SLO has used up.

    Args:
        usage: of that run.
        throttled: why the board was slowed down, where it was.
    """
    if throttled:
        return RanOut("cooling", throttled[0])
    if usage.free_share < LOW_MEMORY_SHARE:
        return RanOut("memory", f"{usage.free_share:.0%} of the board's memory was left")
    if usage.loop_cores is not None and usage.loop_cores >= FULL_SHARE:
        return RanOut(
            "event loop",
            f"the server's main thread used {usage.loop_cores:.0%} of one core, and an engine ran"
            f" for {usage.engine_share:.0%} of the time",
        )
    if max(usage.worker_cores or 0.0, usage.engine_share) >= FULL_SHARE:
        return RanOut("engine", f"an engine ran for {usage.engine_share:.0%} of the time")
    if usage.server_cores is not None and usage.server_cores >= FULL_SHARE * usage.cores_allowed:
        return RanOut(
            "CPU",
            f"the server used {usage.server_cores:.2f} of the {usage.cores_allowed:g} cores that it"
            " may use",
        )
    everybody = (usage.server_cores or 0.0) + usage.generator_cores + usage.other_cores
    if everybody >= FULL_SHARE * usage.cores:
        return RanOut(
            "CPU of the machine",
            f"all {usage.cores} cores were busy: the load generator took"
            f" {usage.generator_cores:.2f}, other programs {usage.other_cores:.2f}",
        )
    if usage.rejected:
        return RanOut("queue", f"{usage.rejected} requests found the queue full")
    busiest = max(usage.loop_cores or 0.0, usage.worker_cores or 0.0, usage.engine_share)
    return RanOut(
        "time",
        "nothing was used up: requests that came together waited for one another, with the"
        f" server's busiest thread at {busiest:.0%}",
    )


def read(pids: Sequence[int], *, proc: Path = PROC) -> Moment:
    """What these processes and their children have used until now."""
    family = descendants(pids, proc=proc)
    machine_s, stolen_s = _machine(proc)
    memory = dict(_kilobytes(proc / "meminfo"))
    return Moment(
        at_s=time.monotonic(),
        threads_s={key: spent for pid in family for key, spent in _threads(proc, pid)},
        machine_s=machine_s,
        stolen_s=stolen_s,
        memory_bytes=sum(pss_bytes(pid, proc=proc) for pid in family),
        free_bytes=memory.get("MemAvailable", 0),
        total_bytes=memory.get("MemTotal", 0),
    )


def descendants(pids: Sequence[int], *, proc: Path = PROC) -> list[int]:
    """These processes and all of their children, grandchildren and so on."""
    parents: dict[int, int] = {}
    for path in proc.glob("[0-9]*/stat"):
        fields = _stat(path)
        if fields:
            parents[int(path.parent.name)] = int(fields[1])
    family = [pid for pid in pids if pid in parents]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def cpu_s(before: Moment, after: Moment) -> float:
    """CPU seconds between two moments, of threads that lived at the second."""
    return sum(spent - before.threads_s.get(key, 0.0) for key, spent in after.threads_s.items())


def pss_bytes(pid: int, *, proc: Path = PROC) -> int:
    """Memory of a process, shared pages counted by their share; 0 of one that has ended."""
    return dict(_kilobytes(proc / str(pid) / "smaps_rollup")).get("Pss", 0)


def cores_allowed(pid: int | None, *, cgroup: Path = CGROUP) -> float:
    """Cores that a process may use: those it may run on, or what its control group grants."""
    cores = float(len(os.sched_getaffinity(pid or 0)))
    words = _text(cgroup / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
        cores = min(cores, int(words[0]) / int(words[1]))
    return cores


def _threads(proc: Path, pid: int) -> Iterator[tuple[tuple[int, int], float]]:
    for path in (proc / str(pid) / "task").glob("[0-9]*/stat"):
        fields = _stat(path)
        if fields:
            spent_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
            yield (pid, int(path.parent.name)), spent_s


def _machine(proc: Path) -> tuple[float, float]:
    """CPU seconds that all programs used, and that the host kept from this machine."""
    words = _text(proc / "stat").partition("\n")[0].split()
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, words[1:9])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S, steal / _TICKS_PER_S


def _stat(path: Path) -> list[str]:
    """Fields of a `stat` from the third on; none of what has ended."""
    return _text(path).rpartition(")")[2].split()


def _kilobytes(path: Path) -> Iterator[tuple[str, int]]:
    for line in _text(path).splitlines():
        name, _, value = line.partition(":")
        if value.split()[:1] and value.split()[0].isdigit():
            yield name, int(value.split()[0]) * 1024


def _text(path: Path) -> str:
    """A file of the kernel; a process may have ended in the meantime."""
    try:
        return path.read_text("ascii", errors="replace")
    except OSError:
        return ""
