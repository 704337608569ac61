"""Live: what serves of each model, and the way from a slot to serving.

Promise: a slot serves only after every byte of it was checked, a trusted key was found to have
signed it, and the engine reproduced its golden outputs, at each start anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from edgekit import training
from edgekit.bundle import Bundle
from edgekit.clock import Clock
from edgekit.errors import (
    BundleError,
    EdgekitError,
    EngineError,
    EngineNotInstalled,
    GoldenMismatch,
    LatencyExceeded,
    MemoryExceeded,
    Overloaded,
    PlacementBroken,
    StorageError,
    UntrustedError,
)
from edgekit.signing import PublicKey
from edgekit_runtime.canary.verdict import Verdict
from edgekit_runtime.update import Reason, UpdateFailed

log = logging.getLogger(__name__)

S = TypeVar("S")
Old = TypeVar("Old", contravariant=True)

# The first class that an error is an instance of gives its reason.
_REASONS: tuple[tuple[type[EdgekitError], Reason], ...] = (
    (UntrustedError, Reason.UNTRUSTED),
    (BundleError, Reason.DAMAGED),
    (GoldenMismatch, Reason.GOLDEN_MISMATCH),
    (PlacementBroken, Reason.PLACEMENT_BROKEN),
    (LatencyExceeded, Reason.PROBE_LATENCY),
    (MemoryExceeded, Reason.PROBE_MEMORY),
    (EngineNotInstalled, Reason.NO_ENGINE),
    (EngineError, Reason.ENGINE_ERROR),
    (Overloaded, Reason.PROBE_MEMORY),
    (StorageError, Reason.DISK_FULL),
)


class Serving(Protocol[S]):
    """What answers requests: `Models` of the server."""

    def load(self, bundle: Bundle, *, verified_by: str | None, proven: bool = False) -> S:
        """Open and probe an unpacked bundle, not yet visible; see `Models.load`."""
        ...

    def activate(self, served: S, *, replace: bool = False, keep: bool = False) -> object:
        """Make it visible, in place of another version of the same model, which may be kept."""
        ...

    def keeps(self, served: S) -> bool:
        """Whether it was kept, and has not been closed since."""
        ...

    def present(self, served: S) -> S | None:
        """What serves under its name and version by now: itself, the same opened anew, or none."""
        ...

    def release(self, name: str) -> None:
        """Close the version of a model that was kept."""
        ...

    def discard(self, served: S) -> None:
        """Give back what a loaded version holds that is not going to serve."""
        ...

    def pass_over(self, thread: threading.Thread) -> None:
        """Let others be loaded beside what this thread loads, which may hang."""
        ...


class Trial(Protocol[Old]):
    """One comparison on live inputs: `canary.trial.Trial`."""

    @property
    def spent_s(self) -> float:
        """How much of its time limit is over, in seconds."""
        ...

    def again(self, old: Old) -> Trial[Old]:
        """End, and go on with the version that serves where that was opened anew."""
        ...

    def verdict(self) -> Verdict | None:
        """What the evidence says by now; `None` for not yet."""
        ...

    def progress(self) -> float:
        """How far it is, 0 to 1."""
        ...

    def close(self) -> None:
        """Take no more live inputs, and let go of both versions."""
        ...


class Active(NamedTuple):
    """What serves of one model, and where its files lie."""

    version: str
    digest: str
    folder: Path
    is_trainable: bool


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """A version that could serve."""

    served: S
    active: Active


class Live(Generic[S]):
    """The versions that serve.

    Args:
        serving: where versions are loaded and activated.
        keys: who may sign.
        engine_failures: how often the engine failed in a loaded version.
        compare: begins a canary of a loaded version (second) beside the one that serves (first),
            of whose time limit so many seconds are over; `None` where this board has none.
        clock: says how long a version has served.
    """

    def __init__(
        self,
        serving: Serving[S],
        *,
        keys: Sequence[PublicKey],
        engine_failures: Callable[[S], int],
        compare: Callable[[S, S, float], Trial[S]] | None = None,
        clock: Clock,
    ) -> None:
        self._serving = serving
        self._keys = keys
        self._engine_failures = engine_failures
        self._compare = compare
        self._clock = clock
        self._loaded: dict[str, Loaded[S]] = {}
        self._kept: dict[str, Loaded[S]] = {}
        self._since: dict[str, float] = {}

    def load(
        self,
        folder: Path,
        *,
        digest: str | None = None,
        keys: Sequence[str] = (),
        proven: bool = False,
    ) -> Loaded[S]:
        """Check, open and probe what lies in a slot, raising `UpdateFailed` with the reason.

        Args:
            folder: the slot.
            digest: of the bundle that the record says lies there.
            keys: who may have signed it beside the device's own keys (PEM).
            proven: whether it served here before: limits of latency and memory that it met once
                are not held against it while a board is busy with its start.
        """
        try:
            bundle = Bundle.open(folder)
        except BundleError as e:
            raise UpdateFailed(Reason.SLOT_DAMAGED, str(e)) from e
        with failing_with_reason(), bundle:
            if digest not in (None, bundle.digest):
                raise UpdateFailed(
                    Reason.SLOT_DAMAGED, f"{folder} holds {bundle.digest}, not {digest}"
                )
            key = bundle.verify([*self._keys, *public_keys(keys)])
            served = self._serving.load(bundle, verified_by=key.id, proven=proven)
            manifest = bundle.manifest
            active = Active(
                manifest.version, bundle.digest, folder, training.TRAIN in manifest.entries
            )
        return Loaded(served, active)

    def show(self, model: str, loaded: Loaded[S]) -> None:
        """Let a version serve, in place of the one that does, which is kept until `settle`.

        Where this raises it does not serve, and is still the caller's.
        """
        before = self._present(model)
        try:
            self._serving.activate(loaded.served, replace=True, keep=True)
        except Exception:
            if self._serving.present(loaded.served) is not loaded.served:
                raise
            log.exception("what was replaced cannot be closed", extra={"model": model})
        self._kept.pop(model, None)
        if before is not None and before.served is not loaded.served:
            self._kept[model] = before
        self._loaded[model] = loaded
        self._since[model] = self._clock.monotonic()

    def settle(self, model: str) -> None:
        """The present version has proved itself: the one before gives its memory back."""
        if self._kept.pop(model, None) is not None:
            self._serving.release(model)

    def can_try(self, model: str) -> bool:
        """Whether a new version of this model can be compared with one that serves."""
        return self._compare is not None and model in self._loaded

    def present(self, model: str) -> S | None:
        """What serves of a model now, also where it was opened anew; `None` where nothing does."""
        loaded = self._present(model)
        return None if loaded is None else loaded.served

    def try_out(self, model: str, loaded: Loaded[S], *, spent_s: float = 0.0) -> Trial[S]:
        """Begin to compare a loaded version with the one that serves, on live inputs."""
        # One that was taken out meanwhile says by itself that it cannot be compared with.
        old = self._present(model) or self._loaded[model]
        assert self._compare is not None
        return self._compare(old.served, loaded.served, spent_s)

    def kept(self, model: str, folder: Path) -> Loaded[S] | None:
        """The version in this slot, where it is still open beside the one that serves."""
        kept = self._kept.get(model)
        if kept is None or kept.active.folder != folder:
            return None
        # It may have given its memory to the new one, or others may have changed what serves.
        return kept if self._serving.keeps(kept.served) else None

    def discard(self, loaded: Loaded[S]) -> None:
        """Close a loaded version that is not going to serve."""
        self._serving.discard(loaded.served)

    def pass_over(self, thread: threading.Thread) -> None:
        """Let others be loaded beside what this thread loads, which may hang."""
        self._serving.pass_over(thread)

    def serves(self, model: str) -> bool:
        """Whether anything of a model serves: what was shown may have been taken out by request."""
        return self._present(model) is not None

    def active(self, model: str) -> Active | None:
        """What was shown last of a model."""
        loaded = self._loaded.get(model)
        return loaded.active if loaded else None

    def served_s(self, model: str) -> float:
        """How long the present version has served, in seconds; 0 where none does."""
        since = self._since.get(model)
        return 0.0 if since is None else self._clock.monotonic() - since

    def engine_failures(self, model: str) -> int:
        """How often the engine failed in the present version."""
        loaded = self._present(model)
        return self._engine_failures(loaded.served) if loaded else 0

    def _present(self, model: str) -> Loaded[S] | None:
        """The version that serves. Others may have taken it out, or opened it anew, meanwhile."""
        loaded = self._loaded.get(model)
        served = self._serving.present(loaded.served) if loaded else None
        return replace(loaded, served=served) if loaded and served is not None else None


def public_keys(pems: Sequence[str]) -> list[PublicKey]:
    """Keys that the signed repository named."""
    return [PublicKey.parse(pem.encode(), what="a key of the repository") for pem in pems]


@contextmanager
def failing_with_reason() -> Iterator[None]:
    """Turn an error of bundle, engine or disk into `UpdateFailed` with its reason code."""
    try:
        yield
    except UpdateFailed:
        raise
    except EdgekitError as e:
        for kind, reason in _REASONS:
            if isinstance(e, kind):
                raise UpdateFailed(reason, str(e)) from e
        raise
