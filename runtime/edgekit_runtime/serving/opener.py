"""Opener: one variant of a bundle from its file to something that can run, proven and measured.

Nothing that failed to reproduce its golden outputs here, or does not run where its manifest says
that it runs, ever leaves this module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit.errors import BundleError, DataError, EngineError, GoldenMismatch
from edgekit.manifest import Limits, Variant
from edgekit_runtime import placement
from edgekit_runtime.compiled import Compiled, Compiling
from edgekit_runtime.engines import ENGINES, Session, Tensors, threads
from edgekit_runtime.engines.batches import can_batch, iter_batches, run_all
from edgekit_runtime.limits import Footprint
from edgekit_runtime.probe import compare, probe
from edgekit_runtime.serving.plan import Plan, Workers
from edgekit_runtime.serving.rung import Opened
from edgekit_runtime.serving.runners import LoopRunner, Runner, ThreadRunner
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.serving.stats import Stats

log = logging.getLogger(__name__)

REPORT = "reports/report.json"
Measure = Callable[..., Plan]
Sessions = Callable[..., Session]


class StillCompiling(EngineError):
    """The engine makes its own form of the artefact on this board first; that takes a while."""


class Opener:
    """Opens variants.

    Args:
        settings: where they run.
        measure: decides how a session is run (`plan.measure`).
        compiled: keeps what engines make on this board; `None` opens artefacts as they are.
        count: how many models share the board's cores, this one included.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        measure: Measure,
        compiled: Compiled | None,
        count: Callable[[], int],
    ) -> None:
        self._count = count
        self._settings = settings
        self._measure = measure
        self._compiled = compiled

    def open(
        self,
        bundle: Bundle,
        variant: Variant,
        *,
        stats: Stats,
        compiled: Callable[[], None],
        lost: Callable[[EngineError], None],
        proven: bool = False,
    ) -> Opened:
        """Open, check, probe and measure a variant.

        Args:
            bundle: an unpacked folder, opened.
            variant: one of its variants.
            stats: where its runs are counted.
            compiled: called from another thread when a compilation that this began has ended.
            lost: called on the loop when its worker was lost.
            proven: it kept to the limits of its manifest on this board before; they are not held
                against it again, lest a board that is busy for a moment lose its only version.

        Raises:
            StillCompiling: call again when `compiled` was called.
            EngineError: it cannot run here.
            GoldenMismatch: it runs, and does not give what it gave at its build.
            PlacementBroken: it does not run where its manifest says.
            LatencyExceeded: it is slower than its manifest allows.
            MemoryExceeded: it holds more memory than its manifest allows.
        """
        apart = _apart(variant, self._settings.workers)
        limits = Limits() if proven else bundle.manifest.limits or Limits()
        footprint = Footprint.begin(variant, limits, apart=apart)
        session = self._session(bundle, variant, apart=apart, compiled=compiled)
        try:
            placed = placement.verify(variant, session, alarm=_alarm(bundle, variant))
            probed = probe(bundle, variant, session, limits=limits, footprint=footprint)
            samples = bundle.tensors(GOLDEN_INPUTS)
            sample = next(iter_batches(session.inputs, samples, size=1))
            may_batch = can_batch(session) and _batches_alike(session, samples, variant)
            workers: Workers = "process" if apart else self._settings.workers
            plan = self._measure(session, sample, may_batch=may_batch, workers=workers)
            return Opened(
                inputs=session.inputs,
                outputs=session.outputs,
                providers=session.providers,
                engine_version=ENGINES.get(variant.engine).version(),
                probe=probed,
                plan=plan,
                placed=placed,
                runner=self._runner(session, plan, stats=stats, name=_name(bundle), lost=lost),
                size_bytes=variant.needs.memory_mb << 20,
            )
        except BaseException:
            session.close()
            raise

    def second(self, bundle: Bundle, variant: Variant) -> Session:
        """One more session of a variant that is open, opened as that was; nothing is proven again.

        Raises `EngineError` where an engine or a device has room for one alone.
        """
        apart = _apart(variant, self._settings.workers)
        return self._session(bundle, variant, apart=apart, compiled=lambda: None)

    def _session(
        self, bundle: Bundle, variant: Variant, *, apart: bool, compiled: Callable[[], None]
    ) -> Session:
        artifact, options = bundle.artifact(variant), dict(variant.options)
        name = f"{_name(bundle)} {variant.name}"
        if self._compiled is None:
            return self._open(artifact, variant.engine, options, name=name, apart=apart)
        digest = bundle.manifest.entries[variant.artifact].sha256
        usable = self._compiled.prepare(
            variant, artifact, sha256=digest, done=lambda _key: compiled()
        )
        if isinstance(usable, Compiling):
            raise StillCompiling(f"variant {variant.name} is {usable.text}")
        try:
            found = dict(usable.options)
            return self._open(usable.artifact, variant.engine, found, name=name, apart=apart)
        except EngineError:
            if usable.entry is None:
                raise
            log.warning("compiled form does not open, made anew", extra={"variant": name})
            self._compiled.reject(usable)
            return self._session(bundle, variant, apart=apart, compiled=compiled)

    def _open(
        self, artifact: Path, engine: str, options: dict[str, Any], *, name: str, apart: bool
    ) -> Session:
        options = threads.with_defaults(options, engine, models=self._count())
        if not apart:
            return ENGINES.get(engine).open(artifact, options=options)
        from edgekit_runtime.serving.process.limits import WorkerLimits
        from edgekit_runtime.serving.process.session import open_process

        limits = WorkerLimits(
            run_s=self._settings.run_limit_s, memory_bytes=self._settings.worker_bytes or None
        )
        return open_process(artifact, engine, options, name=name, limits=limits)

    def _runner(
        self,
        session: Session,
        plan: Plan,
        *,
        stats: Stats,
        name: str,
        lost: Callable[[EngineError], None],
    ) -> Runner:
        if plan.place == "loop":
            return LoopRunner(session, stats=stats)
        if plan.place == "thread":
            limit_s = self._settings.run_limit_s
            return ThreadRunner(session, stats=stats, name=name, run_limit_s=limit_s)
        from edgekit_runtime.serving.process.runner import ProcessRunner
        from edgekit_runtime.serving.process.session import ProcessSession

        assert isinstance(session, ProcessSession)
        return ProcessRunner(session, stats=stats, on_lost=lost)


def open_variant(bundle: Bundle, variant: Variant) -> Session:
    """Open a variant's artefact in its engine, raising `EngineError` where that cannot be."""
    options: dict[str, Any] = dict(variant.options)
    return ENGINES.get(variant.engine).open(bundle.artifact(variant), options=options)


def accuracies(bundle: Bundle) -> Mapping[str, float]:
    """Share of the source model's answers that each variant gives, as its build measured."""
    try:
        report = msgspec.json.decode(bundle.read(REPORT), type=_Report)
    except (BundleError, msgspec.MsgspecError):
        return {}
    return {v.name: v.agreement for v in report.variants if v.agreement is not None}


class _VariantReport(msgspec.Struct):
    name: str
    agreement: float | None = None


class _Report(msgspec.Struct):
    variants: list[_VariantReport] = []


def _apart(variant: Variant, workers: Workers) -> bool:
    """Whether a variant is opened in a process of its own."""
    return workers == "process" or (workers == "auto" and variant.accelerator != "cpu")


def _name(bundle: Bundle) -> str:
    return f"{bundle.manifest.name} {bundle.manifest.version}"


def _alarm(bundle: Bundle, variant: Variant) -> Callable[[str], None]:
    facts = {"model": _name(bundle), "variant": variant.name}
    return lambda text: log.error("placement broken", extra={**facts, "reason": text})


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
