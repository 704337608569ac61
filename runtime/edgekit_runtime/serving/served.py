"""Served: one version of a model, with every variant of it that runs or could run here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.errors import Unavailable
from edgekit.manifest import Manifest, TensorSpec, Variant
from edgekit.steps import TopK
from edgekit_runtime.canary.tap import Tap
from edgekit_runtime.drift import Drift
from edgekit_runtime.engines import Session
from edgekit_runtime.probe import ProbeResult
from edgekit_runtime.serving.cache import Answer, Cache
from edgekit_runtime.serving.form import Prepared
from edgekit_runtime.serving.job import RETRY_S, Job
from edgekit_runtime.serving.memo import Memo
from edgekit_runtime.serving.opener import accuracies
from edgekit_runtime.serving.pictures import Surface, surface
from edgekit_runtime.serving.plan import Plan
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.runners import Batch
from edgekit_runtime.serving.scheduler import Scheduler
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.serving.stats import Snapshot, Stats, merged

Beside = Callable[["Served"], AbstractContextManager[Session]]
Want = Callable[["Served", Rung], bool]
Lost = Callable[["Served", Rung, str], None]


class Served:
    """One version of a model.

    Attributes:
        name: the manifest's; with `version` the model's name on HTTP.
        digest: of its bundle.
        folder: where the bundle lies unpacked.
        manifest: of the bundle.
        labels: of its classes, where its pipeline names them.
        surface: what its pipeline takes and gives beside the model's own tensors.
        rungs: every variant, the most accurate first.
        default: the variant that answers where nothing says otherwise.
        skipped: variants before it in the manifest that cannot run here, each with the reason.
        verified_by: id of the key that signed it; `None` where it runs `--insecure`.
        stats: what no variant did.
        cache: of answers; `None` where none are kept.
        drift: how what it sees differs from what its build saw; `None` without a reference.
        shadow: takes copies of live inputs while a canary runs beside this version.
        forms: requests it has seen, by the bytes of their JSON.
    """

    def __init__(
        self,
        bundle: Bundle,
        rungs: Sequence[Rung],
        default: Rung,
        *,
        verified_by: str | None,
        settings: Settings,
        want: Want,
        lost: Lost,
        beside: Beside,
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.name = bundle.manifest.name
        self.version = bundle.manifest.version
        self.digest = bundle.digest
        self.folder: Path = bundle.path
        self.surface: Surface | None = surface(bundle.manifest)
        self.labels = _labels(bundle.manifest)
        self.rungs = tuple(rungs)
        self.default = default
        before = [v.name for v in bundle.manifest.variants]
        before = before[: before.index(default.name)]
        self.skipped: Mapping[str, str] = {
            rung.name: rung.reason for rung in rungs if rung.name in before
        }
        self.verified_by = verified_by
        self.cascade = settings.cascade
        self.stats = Stats()
        size = settings.cache_bytes
        self.cache = Cache(budget_bytes=size) if size else None
        self.forms: Memo[Prepared] = Memo()
        self.drift = Drift.of(bundle)
        self.shadow: Tap | None = None
        self._beside = beside
        self.scheduler = Scheduler(
            self.rungs,
            default=default,
            owner=self,
            stats=self.stats,
            queue_limit=settings.queue_limit,
            want=lambda rung: want(self, rung),
            lost=lambda rung, reason: lost(self, rung, reason),
            climbs=settings.ladder,
            watch=self._watch,
        )

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.version

    @property
    def variant(self) -> Variant:
        """The default one."""
        return self.default.variant

    @property
    def plan(self) -> Plan:
        """How the default variant is run."""
        return self.default.opened.plan

    @property
    def probe(self) -> ProbeResult:
        """What the golden inputs gave in the default variant."""
        return self.default.opened.probe

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.default.opened.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.default.opened.outputs

    @property
    def providers(self) -> tuple[str, ...]:
        return self.default.opened.providers

    @property
    def engine_version(self) -> str:
        return self.default.opened.engine_version

    @property
    def is_ready(self) -> bool:
        """Whether some variant can answer now."""
        return any(rung.state == "ready" for rung in self.rungs)

    @property
    def unready(self) -> str:
        """Why nothing can answer now."""
        return "; ".join(f"{rung.name}: {rung.reason or rung.state}" for rung in self.rungs)

    @property
    def queue_depth(self) -> int:
        """Requests that wait now."""
        return self.scheduler.depth

    def rung(self, name: str) -> Rung | None:
        """A variant's rung by its name."""
        return next((rung for rung in self.rungs if rung.name == name), None)

    def beside(self) -> AbstractContextManager[Session]:
        """A second session of the default variant, for a canary; see `Keeper.beside`."""
        return self._beside(self)

    def promote(self, rung: Rung) -> None:
        """Let a variant that came late be the default that the manifest wants, on the loop."""
        order = [variant.name for variant in self.manifest.variants]
        is_earlier = order.index(rung.name) < order.index(self.default.name)
        ours = self.default.opened
        if is_earlier and (rung.opened.inputs, rung.opened.outputs) == (ours.inputs, ours.outputs):
            self.default = rung
            self.scheduler.promote(rung)
            self.skipped = {name: why for name, why in self.skipped.items() if name != rung.name}

    def submit(self, job: Job, *, alone: bool = False) -> None:
        """Run a request, or answer what was answered before; see `Scheduler.submit`."""
        cache = self.cache
        if cache is not None and job.may_keep and job.cascade is None:
            key = cache.key(job.inputs, job.variant)
            if key is not None:
                run_ns = self.default.run_us(job.rows or 1) * 1000
                if (answer := cache.get(key, run_ns=run_ns)) is not None:
                    self._answer_again(job, answer)
                    return
                job.cache_key = key
        self.scheduler.submit(job, alone=alone)

    def _answer_again(self, job: Job, answer: Answer) -> None:
        now_ns = time.perf_counter_ns()
        job.settle(answer.outputs, answer.rung)
        answer.rung.stats.answered(
            [job.arrived_ns],
            taken_ns=now_ns,
            done_ns=time.perf_counter_ns(),
            now_ms=time.time_ns() // 1_000_000,
        )

    def _watch(self, batch: Batch, rung: Rung, run_ns: int) -> None:
        """A batch was answered: keep what may come again, and look at it where that is due."""
        if self.cache is not None:
            self._keep(self.cache, batch, rung)
        shadow = self.shadow
        if shadow is not None and shadow.is_due():
            job = batch.jobs[shadow.choose(len(batch.jobs))]
            if job.may_keep:
                shadow.offer(job.inputs, job.rows)
        drift = self.drift
        # Clients in shared memory have looked at theirs already.
        if drift is None or not batch.jobs[0].may_keep or not drift.due(run_ns):
            return
        for job, result in zip(batch.jobs, batch.results, strict=True):
            # The second answer of a cascade is of hard samples alone.
            is_first = job.fallback is None or job.fallback[1] is rung
            if job.may_keep and is_first and not isinstance(result, Exception):
                drift.observe(rung.name, job.inputs, result, job.rows)
                return

    def _keep(self, cache: Cache, batch: Batch, rung: Rung) -> None:
        for job, result in zip(batch.jobs, batch.results, strict=True):
            is_plain = rung is self.default or job.variant is not None
            if job.cache_key is not None and is_plain and not isinstance(result, Exception):
                cache.put(job.cache_key, result, rung)

    def allocate(self, size_bytes: int) -> memoryview | None:
        """Memory that a request's body may be received into; `None` for any other."""
        if self.default.state != "ready":
            return None
        return self.default.opened.runner.allocate(size_bytes)

    def snapshot(self) -> Snapshot:
        """What all variants together did, and what none did."""
        return merged([self.stats.snapshot(), *(rung.stats.snapshot() for rung in self.rungs)])

    def check_fits(self, other: Served) -> None:
        """Raise `Unavailable` where a request for another version is none for this one."""
        if (self.inputs, self.outputs) != (other.inputs, other.outputs):
            raise Unavailable(
                f"{self.name} {self.version} took the place of {other.version} and takes other"
                " inputs",
                retry_after_s=RETRY_S,
            )

    def close(self, successor: Served | None = None) -> None:
        """Take no more requests and close after the last one. Returns at once.

        Args:
            successor: answers what waits for a variant that is not open.
        """
        self.scheduler.retire(None if successor is None else successor.scheduler)

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until no file of the bundle is in use any more; whether that is so."""
        return self.scheduler.wait_closed(timeout_s)


def make_rungs(bundle: Bundle) -> list[Rung]:
    """A rung for each variant, the most accurate first.

    Where the build measured no agreement with the source model, the tolerance stands for it that
    the golden outputs need against the source's.
    """
    measured = accuracies(bundle)
    variants = bundle.manifest.variants
    rungs = [Rung(variant, accuracy=measured.get(variant.name)) for variant in variants]
    if all(rung.accuracy is not None for rung in rungs):
        return sorted(rungs, key=lambda r: (-(r.accuracy or 0.0), r.variant.golden.reference_atol))
    return sorted(rungs, key=lambda r: r.variant.golden.reference_atol)


def _labels(manifest: Manifest) -> Sequence[str]:
    for step in manifest.pipeline.post:
        if isinstance(step, TopK) and step.labels is not None:
            return step.labels
    return ()
