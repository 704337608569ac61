"""Models: the table of what is served. A model is seen only after its golden inputs were probed.

Requests read an immutable table, so that a swap is one assignment: each request finds the old model
or the new one, and the old one closes after the last request that found it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping

from edgekit.bundle import Bundle
from edgekit.errors import (
    EngineError,
    GoldenMismatch,
    LatencyExceeded,
    MemoryExceeded,
    NotServed,
    Overloaded,
    PlacementBroken,
    UsageError,
)
from edgekit.manifest import Version
from edgekit.messages import ModelFigures
from edgekit_runtime.compiled import Compiled
from edgekit_runtime.drift import Drift
from edgekit_runtime.serving import plan as plans
from edgekit_runtime.serving.keeper import Keeper
from edgekit_runtime.serving.opener import Measure, Opener, StillCompiling
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served, make_rungs
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.serving.stats import EMPTY, Snapshot, figures, merged

log = logging.getLogger(__name__)

Key = tuple[str, str]

# What a manifest promises and this board does not keep.
_BROKEN = (PlacementBroken, LatencyExceeded, MemoryExceeded)


class Models:
    """What is served. Safe to use from several threads.

    Args:
        settings: where models run, how many may wait, what they may hold.
        measure: decides how a session is run (`plan.measure`).
        compiled: keeps what engines make on this board.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        measure: Measure = plans.measure,
        compiled: Compiled | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._lock = threading.Lock()
        self._table: Mapping[Key, Served] = {}
        self._latest: Mapping[str, Served] = {}
        self._kept: dict[str, Served] = {}
        # Also those that were removed, until their last figures were taken.
        self._counted: dict[Served, dict[str, Snapshot]] = {}
        # What those did that were forgotten before anybody took figures.
        self._gone: dict[tuple[str, str, str], Snapshot] = {}
        self._are_read = False
        self._keeper = Keeper(
            Opener(self.settings, measure=measure, compiled=compiled, count=self._sharing),
            budget_bytes=self.settings.memory_bytes,
            held=lambda: list(self._counted),
        )

    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """From now on requests are answered on this loop."""
        self._keeper.attach(loop)
        if loop is not None:
            for served in self._table.values():
                served.scheduler.attach(loop)

    def load(self, bundle: Bundle, *, verified_by: str | None, proven: bool = False) -> Served:
        """Open, probe and measure the first variant that can run here. Nothing is visible yet.

        Its other variants are opened when a request can use them.

        Args:
            bundle: an unpacked folder, opened; its files must stay until `Served.wait_closed`.
            verified_by: id of the key that signed it; `None` says it runs `--insecure`.
            proven: it kept to the limits of its manifest on this board before.

        Raises:
            EngineError: no variant can run on this machine; the message says why, for each. Where
                the first breaks its placement or a limit, it is that error.
            ManifestError: its pipeline does not fit its model, or its drift reference is not valid.
            GoldenMismatch: the variant runs, and does not give what it gave at its build.
            Overloaded: the memory budget has no room for it.
        """
        rungs = make_rungs(bundle)
        made: list[Served] = []
        try:
            default = self._open_first(bundle, rungs, made, proven=proven)
        except Overloaded:
            if bundle.manifest.name not in self._latest:
                raise
            # No room beside the version that serves: it makes room, and its queue holds.
            default = self._open_instead(bundle, rungs, made, proven=proven)
        try:
            served = Served(
                bundle,
                rungs,
                default,
                verified_by=verified_by,
                settings=self.settings,
                want=self._keeper.want,
                lost=self._keeper.lost,
                beside=self._keeper.beside,
            )
        except BaseException:
            default.opened.runner.close()
            self._go_on(bundle.manifest.name)
            raise
        made.append(served)
        with self._lock:
            self._counted[served] = {}
        opened = default.opened
        log.info(
            "model loaded",
            extra={
                "model": served.name,
                "version": served.version,
                "variant": default.name,
                "engine": f"{default.variant.engine} {opened.engine_version}",
                "providers": ",".join(opened.providers),
                "runs": opened.plan.place,
                "max_batch": opened.plan.max_batch,
                "cost_us": round(opened.plan.cost_us, 1),
            },
        )
        return served

    def activate(self, served: Served, *, replace: bool = False, keep: bool = False) -> None:
        """Make a loaded model visible.

        Args:
            served: what `load` gave, or what was kept.
            replace: whether it takes the place of every other version of the model, all at once;
                requests that are in flight there finish.
            keep: whether what it replaces stays open, so that it can be activated again at once.

        Raises:
            UsageError: this name and version is served already.
        """
        self._keeper.greet(served)
        with self._lock:
            old = self._table.get(served.key)
            if old is not None and not replace:
                raise UsageError(
                    f"{served.name} {served.version} is given twice",
                    hint="give one of the two bundles another version",
                )
            others = {
                key: model
                for key, model in self._table.items()
                if not (replace and key[0] == served.name)
            }
            retired = [model for key, model in self._table.items() if key not in others]
            self._forget()
            self._counted.setdefault(served, {})
            self._publish({**others, served.key: served})
            if (kept := self._kept.pop(served.name, None)) is not None:
                retired.append(kept)
            if keep and retired and not retired[0].scheduler.is_held:
                self._kept[served.name] = retired.pop(0)
        for model in retired:
            if model is not served:
                model.close(served)

    def keeps(self, served: Served) -> bool:
        """Whether it was kept when another took its place, and can be activated again."""
        return self._kept.get(served.name) is served

    def present(self, served: Served) -> Served | None:
        """What serves under its name and version by now: itself, the same opened anew, or none."""
        return self._table.get(served.key)

    def release(self, name: str) -> None:
        """Close the version of a model that was kept when another took its place."""
        with self._lock:
            kept = self._kept.pop(name, None)
        if kept is not None:
            kept.close()

    def pass_over(self, thread: threading.Thread) -> None:
        """Let others be loaded beside what this thread loads, which may hang."""
        self._keeper.pass_over(thread)

    def discard(self, served: Served) -> None:
        """Close a loaded model that was never made visible; what made room for it goes on."""
        with self._lock:
            self._counted.pop(served, None)
        served.close()
        self._go_on(served.name)

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

    @property
    def are_ready(self) -> bool:
        """Whether each model could answer now; one that made room for another could not."""
        return all(served.is_ready for served in self._table.values())

    def answers(self, served: Served, version: str | None) -> bool:
        """Whether this is what `find` gives for its name and such a version."""
        if version is None:
            return self._latest.get(served.name) is served
        return self._table.get((served.name, version)) is served

    def versions(self, name: str) -> list[str]:
        """Versions of a model, lowest first."""
        return [served.version for served in self.served() if served.name == name]

    def served(self) -> list[Served]:
        """Everything served, by name and rising version."""
        return sorted(self._table.values(), key=lambda s: (s.name, Version(s.version)))

    def drifts(self) -> list[Drift]:
        """What each model that serves knows of drift."""
        return [served.drift for served in self.served() if served.drift is not None]

    def figures(self) -> list[ModelFigures]:
        """What each variant did since the last call; those that did nothing are left out."""
        taken: list[ModelFigures] = []
        with self._lock:
            self._are_read = True
            for labels, whole in self._gone.items():
                delta = figures(whole, EMPTY, labels=labels)
                if delta.requests or delta.rejected:
                    taken.append(delta)
            self._gone = {}
            for served, before in list(self._counted.items()):
                gone = self._is_gone(served)
                for variant, now in _parts(served):
                    labels = (served.name, served.version, variant)
                    delta = figures(now, before.get(variant, EMPTY), labels=labels)
                    if delta.requests or delta.rejected:
                        taken.append(delta)
                        gone = False  # the loop may still be handing out its last answers
                    before[variant] = now
                if gone:
                    del self._counted[served]
        return taken

    def close(self) -> None:
        """Close every model after its last request."""
        self._keeper.close()
        with self._lock:
            models = [*self._table.values(), *self._kept.values()]
            self._kept = {}
            self._publish({})
        for served in models:
            served.close()

    def _is_gone(self, served: Served) -> bool:
        return self._table.get(served.key) is not served and served.wait_closed(0)

    def _forget(self) -> None:
        """Keep of models that were removed their figures alone, where nobody has taken any yet."""
        if self._are_read:
            return
        for served in [one for one in self._counted if self._is_gone(one)]:
            del self._counted[served]
            for variant, whole in _parts(served):
                labels = (served.name, served.version, variant)
                self._gone[labels] = merged([self._gone.get(labels, EMPTY), whole])

    def _go_on(self, name: str) -> None:
        """Let a version answer again that made room for one that is not going to serve."""
        held = self._latest.get(name)
        if held is not None and held.scheduler.is_held:
            self._keeper.on_loop(held.scheduler.resume)

    def _sharing(self) -> int:
        """How many models share the cores, with the one that is being opened."""
        return len(self._latest) + 1

    def _open_first(
        self, bundle: Bundle, rungs: list[Rung], made: list[Served], *, proven: bool
    ) -> Rung:
        """Open the first variant, in the manifest's order, that can run here."""
        failure: type[EngineError] = EngineError
        by_name = {rung.name: rung for rung in rungs}
        name = bundle.manifest.name
        for variant in bundle.manifest.variants:
            rung = by_name[variant.name]
            try:
                rung.put(self._keeper.open(name, bundle, rung, made, proven=proven))
            except StillCompiling as e:
                rung.state, rung.reason = "compiling", e.message
                log.info("variant later", extra={"variant": rung.name, "reason": e.message})
            except GoldenMismatch:
                raise
            except (EngineError, UsageError) as e:
                rung.reason = e.message
                rung.barred = True
                if failure is EngineError and isinstance(e, _BROKEN):
                    failure = type(e)
                log.warning(
                    "variant cannot run here", extra={"variant": rung.name, "reason": e.message}
                )
            else:
                return rung
        reasons = "; ".join(f"{rung.name}: {rung.reason}" for rung in rungs)
        raise failure(
            f"no variant of {name} can run on this machine: {reasons}",
            hint=f"the bundle is for profile {bundle.manifest.profile.name}",
        )

    def _open_instead(
        self, bundle: Bundle, rungs: list[Rung], made: list[Served], *, proven: bool
    ) -> Rung:
        old = self._latest[bundle.manifest.name]
        self._keeper.drain(old)
        try:
            return self._open_first(bundle, rungs, made, proven=proven)
        except BaseException:
            self._go_on(old.name)
            raise

    def _publish(self, table: Mapping[Key, Served]) -> None:
        latest: dict[str, Served] = {}
        for served in sorted(table.values(), key=lambda s: Version(s.version)):
            latest[served.name] = served
        self._table, self._latest = table, latest


def _parts(served: Served) -> list[tuple[str, Snapshot]]:
    """What each variant did; the default one is charged with what none did."""
    parts: list[tuple[str, Snapshot]] = []
    for rung in served.rungs:
        snapshot = rung.stats.snapshot()
        if rung is served.default:
            snapshot = merged([snapshot, served.stats.snapshot()])
        parts.append((rung.name, snapshot))
    return parts
