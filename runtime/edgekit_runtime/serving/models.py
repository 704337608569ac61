"""Models: the table of what is served. A model is seen only after its golden inputs were probed.

Requests read an immutable table, so that a swap is one assignment: each request finds the old model
or the new one, and the old one closes after the last request that found it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit.errors import DataError, EngineError, GoldenMismatch, NotServed, UsageError
from edgekit.manifest import TensorSpec, Variant, Version
from edgekit.messages import ModelFigures
from edgekit_runtime.engines import ENGINES, Session, Tensors
from edgekit_runtime.engines.batches import can_batch, iter_batches, run_all
from edgekit_runtime.probe import ProbeResult, compare, probe
from edgekit_runtime.serving import plan as plans
from edgekit_runtime.serving.memo import Memo
from edgekit_runtime.serving.plan import Plan
from edgekit_runtime.serving.scheduler import Inline, Job, Scheduler, Worker
from edgekit_runtime.serving.stats import EMPTY, Snapshot, Stats, figures
from edgekit_runtime.serving.v2 import Prepared

log = logging.getLogger(__name__)

QUEUE_LIMIT = 64
Key = tuple[str, str]
Measure = Callable[..., Plan]


class Served:
    """One version of a model, open and probed.

    Attributes:
        name: the manifest's; with `version` the model's name on HTTP.
        digest: of its bundle.
        variant: the one that runs.
        skipped: variants before it that cannot run here, each with the reason.
        engine_version: of the library that runs it.
        providers: what the engine says it runs on.
        probe: what the golden inputs gave on this machine.
        plan: how it is run.
        verified_by: id of the key that signed it; `None` where it runs `--insecure`.
        stats: what it did.
        forms: requests it has seen, by the bytes of their JSON.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        session: Session,
        *,
        skipped: Mapping[str, str],
        probed: ProbeResult,
        plan: Plan,
        verified_by: str | None,
        queue_limit: int,
    ) -> None:
        self.name = bundle.manifest.name
        self.version = bundle.manifest.version
        self.digest = bundle.digest
        self.variant = variant
        self.skipped = dict(skipped)
        self.engine_version = ENGINES.get(variant.engine).version()
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.providers = session.providers
        self.probe = probed
        self.plan = plan
        self.verified_by = verified_by
        self.stats = Stats()
        self.forms: Memo[Prepared] = Memo()
        self._scheduler: Scheduler = (
            Inline(session, plan, stats=self.stats)
            if plan.inline
            else Worker(
                session,
                plan,
                stats=self.stats,
                name=f"{self.name} {self.version}",
                queue_limit=queue_limit,
            )
        )

    @property
    def key(self) -> Key:
        return self.name, self.version

    @property
    def queue_depth(self) -> int:
        """Requests that wait now."""
        return self._scheduler.depth

    def submit(self, job: Job, *, alone: bool = False) -> None:
        """Run a request; see `Scheduler.submit`."""
        self._scheduler.submit(job, alone=alone)

    def close(self) -> None:
        """Take no more requests and close after the last one. Returns at once."""
        self._scheduler.retire()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until no file of the bundle is in use any more; whether that is so."""
        return self._scheduler.wait_closed(timeout_s)


class Models:
    """What is served. Safe to use from several threads.

    Args:
        queue_limit: requests that may wait for one model; more are turned away.
        measure: decides how a session is run (`plan.measure`).
    """

    def __init__(self, *, queue_limit: int = QUEUE_LIMIT, measure: Measure = plans.measure) -> None:
        self._queue_limit = queue_limit
        self._measure = measure
        self._lock = threading.Lock()
        self._table: Mapping[Key, Served] = {}
        self._latest: Mapping[str, Served] = {}
        # Also those that were removed, until their last figures were taken.
        self._counted: dict[Served, Snapshot] = {}

    def load(self, bundle: Bundle, *, verified_by: str | None) -> Served:
        """Open, probe and measure the first variant that can run here. Nothing is visible yet.

        Args:
            bundle: an unpacked folder, opened; its files must stay until `Served.wait_closed`.
            verified_by: id of the key that signed it; `None` says it runs `--insecure`.

        Raises:
            EngineError: no variant can run on this machine; the message says why, for each.
            GoldenMismatch: the variant runs, and does not give what it gave at its build.
        """
        variant, session, skipped = _open_first(bundle)
        try:
            probed = probe(bundle, variant, session)
            samples = bundle.tensors(GOLDEN_INPUTS)
            sample = next(iter_batches(session.inputs, samples, size=1))
            may_batch = can_batch(session) and _batches_alike(session, samples, variant)
            plan = self._measure(session, sample, may_batch=may_batch)
            served = Served(
                bundle,
                variant,
                session,
                skipped=skipped,
                probed=probed,
                plan=plan,
                verified_by=verified_by,
                queue_limit=self._queue_limit,
            )
        except BaseException:
            session.close()
            raise
        log.info(
            "model loaded",
            extra={
                "model": served.name,
                "version": served.version,
                "variant": variant.name,
                "engine": f"{variant.engine} {served.engine_version}",
                "providers": ",".join(served.providers),
                "runs": "inline" if plan.inline else "worker",
                "max_batch": plan.max_batch,
                "cost_us": round(plan.cost_us, 1),
            },
        )
        return served

    def activate(self, served: Served, *, replace: bool = False) -> None:
        """Make a loaded model visible.

        Args:
            served: what `load` gave.
            replace: whether it takes the place of every other version of the model, all at once;
                requests that are in flight there finish.

        Raises:
            UsageError: this name and version is served already.
        """
        with self._lock:
            old = self._table.get(served.key)
            if old is not None and not replace:
                raise UsageError(
                    f"{served.name} {served.version} is given twice",
                    hint="give one of the two bundles another version",
                )
            keep = {
                key: model
                for key, model in self._table.items()
                if not (replace and key[0] == served.name)
            }
            retired = [model for key, model in self._table.items() if key not in keep]
            self._counted.setdefault(served, EMPTY)
            self._publish({**keep, served.key: served})
        for model in retired:
            if model is not served:
                model.close()

    def discard(self, served: Served) -> None:
        """Close a loaded model that was never made visible."""
        served.close()

    def remove(self, name: str, version: str) -> Served:
        """Serve this model no more and close it after its last request.

        Raises `NotServed` where it is not there.
        """
        with self._lock:
            served = self._table.get((name, version))
            if served is None:
                raise NotServed(f"{name} {version} is not served here")
            self._publish({key: m for key, m in self._table.items() if m is not served})
        served.close()
        return served

    def find(self, name: str, version: str | None = None) -> Served:
        """The model of this name, its highest version by default; raises `NotServed`."""
        served = self._latest.get(name) if version is None else self._table.get((name, version))
        if served is None:
            known = ", ".join(f"{n} {v}" for n, v in self._table) or "nothing"
            wanted = name if version is None else f"{name} {version}"
            raise NotServed(f"{wanted} is not served here", hint=f"served: {known}")
        return served

    def versions(self, name: str) -> list[str]:
        """Versions of a model, lowest first."""
        return [served.version for served in self.served() if served.name == name]

    def served(self) -> list[Served]:
        """Everything served, by name and rising version."""
        return sorted(self._table.values(), key=lambda s: (s.name, Version(s.version)))

    def figures(self) -> list[ModelFigures]:
        """What each model did since the last call; models that did nothing are left out."""
        taken: list[ModelFigures] = []
        with self._lock:
            for served, before in list(self._counted.items()):
                gone = self._table.get(served.key) is not served and served.wait_closed(0)
                now = served.stats.snapshot()
                labels = (served.name, served.version, served.variant.name)
                delta = figures(now, before, labels=labels)
                if delta.requests or delta.rejected:
                    taken.append(delta)
                    gone = False  # the loop may still be handing out its last answers
                self._counted[served] = now
                if gone:
                    del self._counted[served]
        return taken

    def close(self) -> None:
        """Close every model after its last request."""
        with self._lock:
            models = list(self._table.values())
            self._publish({})
        for served in models:
            served.close()

    def _publish(self, table: Mapping[Key, Served]) -> None:
        latest: dict[str, Served] = {}
        for served in sorted(table.values(), key=lambda s: Version(s.version)):
            latest[served.name] = served
        self._table, self._latest = table, latest


def _open_first(bundle: Bundle) -> tuple[Variant, Session, dict[str, str]]:
    skipped: dict[str, str] = {}
    for variant in bundle.manifest.variants:
        try:
            session = open_variant(bundle, variant)
        except (EngineError, UsageError) as e:
            skipped[variant.name] = e.message
            log.warning(
                "variant cannot run here", extra={"variant": variant.name, "reason": e.message}
            )
            continue
        return variant, session, skipped
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
    raise EngineError(
        f"no variant of {bundle.manifest.name} can run on this machine: {reasons}",
        hint=f"the bundle is for profile {bundle.manifest.profile.name}",
    )


def open_variant(bundle: Bundle, variant: Variant) -> Session:
    """Open a variant's artefact in its engine, raising `EngineError` where that cannot be."""
    options: dict[str, Any] = dict(variant.options)
    return ENGINES.get(variant.engine).open(bundle.artifact(variant), options=options)


def _batches_alike(session: Session, samples: Tensors, variant: Variant) -> bool:
    """Whether samples run together give what they give alone: a dynamic axis need not be a batch.

    A single sample cannot tell, nor can a batch that the engine refuses.
    """
    golden = variant.golden
    atol = golden.reference_atol if golden.atol is None else golden.atol
    if min(len(array) for array in samples.values()) < 2:
        return False
    try:
        alone = run_all(session, samples, max_batch=1)
        compare(run_all(session, samples), alone, atol=atol, rtol=golden.rtol or 0.0, what="batch")
    except (EngineError, DataError, GoldenMismatch) as e:
        log.warning("requests are not batched", extra={"reason": str(e)})
        return False
    return True
