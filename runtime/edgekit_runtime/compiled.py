"""Compiled: what engines make of artefacts on the device, made in the background and kept.

Nothing waits for a compiler: a variant that is not compiled yet is under way, another one serves
meanwhile, and readiness says how far it is. What was made is found again by artefact, engine,
driver, device and options, and whatever does not match these is made anew (`compiled_store`).
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import EngineError, StorageError
from edgekit.manifest import Variant
from edgekit.structs import Strict
from edgekit_runtime import compiled_run
from edgekit_runtime.compiled_run import CompileFailed, Stopped
from edgekit_runtime.compiled_store import HoldsFor, Store
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.compiling import Compilation, Compiles, Usable

log = logging.getLogger(__name__)

Done = Callable[[str], None]

LIMIT_BYTES = 2 << 30
LIMIT_S = 1800.0
MAX_STARTS = 3
_NEARLY = 0.99


class Compiling(Strict, frozen=True, kw_only=True):
    """A compilation that is under way, or waits for the one before it.

    Attributes:
        key: what `done` is called with.
        variant: its name.
        elapsed_s: since it was started; None while it waits.
        expected_s: by an earlier compilation on this device; None without one.
        limit_s: when it is given up.
    """

    key: str
    variant: str
    elapsed_s: float | None
    expected_s: float | None
    limit_s: float

    @property
    def share(self) -> float | None:
        """How much of it is done, by the time that it is expected to take; never all of it."""
        if self.elapsed_s is None or not self.expected_s:
            return None
        return min(self.elapsed_s / self.expected_s, _NEARLY)

    @property
    def text(self) -> str:
        """How far it is, for people."""
        if self.elapsed_s is None:
            return "waiting to be compiled"
        so_far = f"{self.elapsed_s:.0f} s so far, given up after {self.limit_s:.0f} s"
        if self.share is None:
            return f"compiling ({so_far})"
        return f"compiling about {self.share * 100:.0f} %, by the time it took before ({so_far})"


class _Task:
    """One compilation on its way, with everybody who waits for it."""

    def __init__(
        self, variant: Variant, artifact: Path, holds_for: HoldsFor, expected_s: float | None
    ) -> None:
        self.variant, self.artifact, self.holds_for = variant, artifact, holds_for
        self.expected_s = expected_s
        self.started_s: float | None = None
        self.waiting: list[Done] = []


class Compiled:
    """What was compiled on this device. Safe to use from several threads.

    Args:
        folder: where it is kept.
        limit_bytes: what all of it may take on disk.
        limit_s: of one compilation.
    """

    def __init__(
        self, folder: Path, *, limit_bytes: int = LIMIT_BYTES, limit_s: float = LIMIT_S
    ) -> None:
        self._store = Store(folder, limit_bytes=limit_bytes)
        self._limit_s = limit_s
        # Looking into the store may take as long as its files are large; telling progress may not.
        self._preparing = threading.Lock()
        self._changed = threading.Condition()
        self._tasks: dict[str, _Task] = {}
        self._queue: deque[_Task] = deque()
        self._failed: dict[str, EngineError | StorageError] = {}
        self._closing = False
        self._thread: threading.Thread | None = None

    def prepare(
        self, variant: Variant, artifact: Path, *, sha256: str, done: Done
    ) -> Usable | Compiling:
        """What to open for a variant, or how far its compilation is, which this starts.

        Args:
            artifact: the variant's file; it must stay until `done` was called.
            sha256: of the file, as the manifest has it.
            done: is called with the key, on the compiling thread, when it ended well or not;
                calling `prepare` again then tells which. Never called for what is `Usable`, nor
                after `close`.

        Raises:
            CompileFailed: it was tried, and failed; `retry` lets it be tried again.
            EngineNotInstalled: the variant's engine is not on this machine.
            EngineError: an option is not right.
        """
        engine = ENGINES.get(variant.engine)
        compilation = (
            engine.compilation(artifact, options=variant.options)
            if isinstance(engine, Compiles)
            else None
        )
        if compilation is None:
            return Usable(artifact, dict(variant.options))
        holds_for = HoldsFor(
            artifact_sha256=sha256,
            engine=variant.engine,
            engine_version=engine.version(),
            device=dict(compilation.holds_for),
            options=variant.options,
        )
        with self._preparing:
            return self._prepared(variant, artifact, holds_for, compilation, done)

    def progress(self) -> tuple[Compiling, ...]:
        """What is under way and what waits, in the order in which it is compiled."""
        with self._changed:
            return tuple(self._told(task) for task in self._tasks.values())

    def retry(self, key: str) -> None:
        """Let a compilation that failed be tried again."""
        with self._changed:
            self._failed.pop(key, None)
        self._store.forget_starts(key)

    def reject(self, usable: Usable) -> None:
        """Remove what does not open: a driver may take back what it made, with no word of why."""
        if usable.entry is not None:
            with self._preparing:
                self._store.remove(usable.entry)

    def close(self) -> None:
        """End what is under way, and wait for its process."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _prepared(
        self,
        variant: Variant,
        artifact: Path,
        holds_for: HoldsFor,
        compilation: Compilation,
        done: Done,
    ) -> Usable | Compiling:
        key = holds_for.key
        if (waiting := self._join(key, done)) is not None:
            return waiting
        folder = self._store.find(holds_for)
        if folder is not None:
            return compilation.usable(folder)._replace(entry=folder)
        self._require_hope(variant, key)
        size_bytes = artifact.stat().st_size
        expected_s = self._store.expected_s(holds_for, artifact_bytes=size_bytes)
        task = _Task(variant, artifact, holds_for, expected_s)
        task.waiting.append(done)
        with self._changed:
            self._tasks[key] = task
            self._queue.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="compile", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return self._told(task)

    def _join(self, key: str, done: Done) -> Compiling | None:
        with self._changed:
            task = self._tasks.get(key)
            if task is None:
                return None
            task.waiting.append(done)
            return self._told(task)

    def _require_hope(self, variant: Variant, key: str) -> None:
        with self._changed:
            failure = self._failed.get(key)
        if failure is not None:
            raise CompileFailed(failure.message, hint=failure.hint) from failure
        starts = self._store.starts(key)
        if starts.count >= MAX_STARTS:
            raise CompileFailed(
                f"compiling variant {variant.name} was started {starts.count} times on this device"
                f" and never ended well: {starts.reason}",
                hint=f"serve another variant; to try again remove {self._store.starts_file(key)}",
            )

    def _told(self, task: _Task) -> Compiling:
        elapsed_s = None if task.started_s is None else time.monotonic() - task.started_s
        return Compiling(
            key=task.holds_for.key,
            variant=task.variant.name,
            elapsed_s=elapsed_s,
            expected_s=task.expected_s,
            limit_s=self._limit_s,
        )

    def _work(self) -> None:
        while (task := self._next()) is not None:
            key = task.holds_for.key
            failure: EngineError | StorageError | None = None
            try:
                self._make(task)
            except Stopped:
                return
            except (EngineError, StorageError) as e:
                extra = {"variant": task.variant.name, "reason": e.message}
                log.warning("compilation failed", extra=extra)
                failure = e
            with self._changed:
                if failure is not None:
                    self._failed[key] = failure
                del self._tasks[key]
            for done in task.waiting:
                done(key)

    def _next(self) -> _Task | None:
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            task = self._queue.popleft()
            task.started_s = time.monotonic()
            return task

    def _make(self, task: _Task) -> None:
        key, started_s = task.holds_for.key, time.monotonic()
        size_bytes = task.artifact.stat().st_size
        log.info("compilation starts", extra={"variant": task.variant.name, "key": key})
        work = self._store.work_folder()
        self._store.note_start(key)
        try:
            compiled_run.run(
                task.artifact,
                engine=task.variant.engine,
                options=task.variant.options,
                folder=work,
                limit_s=self._limit_s,
                stopped=lambda: self._closing,
            )
            took_s = time.monotonic() - started_s
            self._store.keep(work, task.holds_for, took_s=took_s, artifact_bytes=size_bytes)
        except Stopped:
            self._store.take_back_start(key)
            raise
        except (EngineError, StorageError) as e:
            self._store.note_failure(key, e.message)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        extra = {"variant": task.variant.name, "key": key, "took_ms": round(took_s * 1000)}
        log.info("compiled", extra=extra)
