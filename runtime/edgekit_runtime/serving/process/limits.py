"""Limits: what a worker process may take."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgekit.structs import Strict
from edgekit_runtime.serving.process.memory import own_bytes

Seconds = Annotated[float, msgspec.Meta(gt=0)]


class WorkerLimits(Strict, frozen=True, kw_only=True):
    """What a worker may take; one that takes more is ended.

    Attributes:
        run_s: one run while it serves.
        open_s: to open its artefact, and each run before it serves: engines compile in either.
        memory_bytes: of its own: what its end gives back. Neither libraries, which it shares, nor
            tensors under way, which lie in the arena, count. `None`: no limit.
        arena_bytes: address space for tensors; pages are taken when used, and given back when idle.
    """

    run_s: Seconds = 30.0
    open_s: Seconds = 600.0
    memory_bytes: Annotated[int, msgspec.Meta(gt=0)] | None = None
    arena_bytes: Annotated[int, msgspec.Meta(ge=1 << 20)] = 256 << 20

    def excess(self, pid: int) -> str | None:
        """By what a process exceeds its memory, in words; `None` where it does not."""
        if self.memory_bytes is None:
            return None
        held = own_bytes(pid)
        if held <= self.memory_bytes:
            return None
        return (
            f"exceeded its memory budget of {self.memory_bytes >> 20} MB: it holds {held >> 20} MB"
        )
