"""Settings: what whoever serves may decide about it; everything has a default."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgekit.structs import Strict
from edgekit_runtime.serving.plan import Workers


class Settings(Strict, frozen=True, kw_only=True):
    """How models are served.

    Attributes:
        workers: where variants run: on the event loop, on threads or in processes of their own;
            "auto" takes processes for accelerators, whose drivers hang and crash, and else the
            loop or a thread by what a run was measured to cost.
        queue_limit: requests that may wait for one model; more are turned away.
        memory_bytes: what all open models together may hold; 0 is no limit.
        cache_bytes: of answers kept for each model; 0 keeps none.
        ladder: whether deadlines choose the variant; else the bundle's default answers.
        cascade: confidence below which a small variant's answer is asked again of the most
            accurate one; `None` leaves that to each request.
        run_limit_s: a run that takes longer is given up, and its worker with it.
        worker_bytes: memory of one worker process above which it is ended; 0 is no limit.
    """

    workers: Workers = "auto"
    queue_limit: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 64
    memory_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    cache_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    ladder: bool = True
    cascade: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    run_limit_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    worker_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
