"""There: the benchmark as it runs on the board, called by `agent` once everything is carried.

Golden inputs come first: a variant that does not reproduce them is not timed, and neither is
anything beside it. Readings of heat and clocks are taken between runs, never within one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import EdgekitError, EngineError
from edgekit.structs import Strict
from edgekit_runtime import bench
from edgekit_runtime.board import conditions, replies
from edgekit_runtime.board.conditions import Reading
from edgekit_runtime.board.figures import Outcome, Reproduced
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.opening import open_trusted
from edgekit_runtime.probe import probe

READINGS = 60
MIN_INTERVAL_S = 0.5

Say = Callable[[str], None]


class Task(Strict, frozen=True, kw_only=True):
    """What to run.

    Attributes:
        bundles: names of bundle files.
        models: name of a model file to the engine that runs it.
        seconds: how long to measure in all.
        root: where conditions are read from.
    """

    bundles: tuple[str, ...]
    models: dict[str, str]
    seconds: float
    runs: int
    root: str = "/"


def run(
    raw: bytes, files: Mapping[str, str], folder: str, reply: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What the workstation gets: an `Outcome` as plain data, or an error.

    Args:
        raw: a `Task` as JSON.
        files: name in the task to the path of the file, whose digest was checked.
        folder: where unpacked bundles may stay.
        reply: sends what is to be said in the meantime.
    """
    try:
        task = msgspec.json.decode(raw, type=Task)
        paths = {name: Path(path) for name, path in files.items()}
        found = measure(task, paths, Path(folder), say=lambda text: reply({"say": text}))
    except EdgekitError as e:
        return replies.encode_error(e)
    outcome: dict[str, Any] = msgspec.to_builtins(found)
    return {"outcome": outcome}


def measure(task: Task, files: Mapping[str, Path], folder: Path, *, say: Say) -> Outcome:
    """Prove and time everything in a task, interleaved.

    Raises:
        GoldenMismatch: a variant does not answer its golden inputs as it must.
        EngineError: nothing of this can run here.
    """
    root = Path(task.root)
    golden: list[Reproduced] = []
    found: list[bench.Subject | bench.Skipped] = []
    with ExitStack() as stack:
        for name in task.bundles:
            say(f"running the golden inputs of {name}")
            # The digest of the file was checked, and it is that of a file trusted there.
            opened = open_trusted(files[name], trusted=(), insecure=True, cache=folder / "bundles")
            stack.callback(opened.bundle.close)
            for subject in bench.open_bundle(opened.bundle):
                found.append(subject)
                if isinstance(subject, bench.Subject):
                    stack.callback(subject.session.close)
                    variant = opened.bundle.manifest.variant(subject.variant or "")
                    result = probe(opened.bundle, variant, subject.session)
                    golden.append(
                        Reproduced(
                            label=subject.label,
                            samples=result.samples,
                            own_error=result.own_error,
                            reference_error=result.reference_error,
                        )
                    )
        for name, engine in task.models.items():
            say(f"opening {name}")
            model = bench.open_model(files[name], engine=engine, label=name)
            stack.callback(model.session.close)
            found.append(model)
        subjects = [one for one in found if isinstance(one, bench.Subject)]
        skipped = [one for one in found if isinstance(one, bench.Skipped)]
        if not subjects:
            reasons = "; ".join(f"{one.label}: {one.reason}" for one in skipped)
            raise EngineError(f"nothing of this can run here: {reasons}")
        say(f"measuring {len(subjects)} side by side for at most {task.seconds:g} s")
        readings = Readings(root, every_s=max(MIN_INTERVAL_S, task.seconds / READINGS))
        before = readings.take(tools=True)
        results = bench.measure(
            subjects, seconds=task.seconds, max_runs=task.runs, between=readings.take_in_time
        )
        after = readings.take(tools=True)
    return Outcome(
        results=tuple(results),
        skipped=tuple(skipped),
        golden=tuple(golden),
        conditions=conditions.around(before, readings.during, after, root=root),
        engines={one.engine: ENGINES.get(one.engine).version() for one in subjects},
    )


class Readings:
    """Readings of one run, spaced out.

    Args:
        root: where the board's file systems are.
        every_s: the least time between two readings of `during`.
    """

    def __init__(self, root: Path, *, every_s: float) -> None:
        self._root = root
        self._every_s = every_s
        self._began_s: float | None = None
        self._next_s = 0.0
        self.during: list[Reading] = []

    def take(self, *, tools: bool) -> Reading:
        """One reading now; before the first of `during`, its time is 0."""
        now_s = time.monotonic()
        at_s = 0.0 if self._began_s is None else now_s - self._began_s
        return conditions.read(self._root, at_s=at_s, tools=tools)

    def take_in_time(self) -> None:
        """One more of `during`, if it is time for it."""
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
        if now_s >= self._next_s:
            self.during.append(self.take(tools=False))
            self._next_s = now_s + self._every_s
