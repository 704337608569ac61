"""A child that is driven by the event loop answers every job once, whatever becomes of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import EngineError, Overloaded, WorkerLost
from edgekit_runtime.serving.job import Job, Outputs
from edgekit_runtime.serving.process.limits import WorkerLimits
from edgekit_runtime.serving.process.memory import own_bytes
from edgekit_runtime.serving.process.runner import ProcessRunner
from edgekit_runtime.serving.process.session import open_process
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.runners import Batch
from edgekit_runtime.serving.server import new_event_loop
from edgekit_runtime.serving.stats import Stats
from tests.runtime.descriptors import descriptors
from tests.runtime.onnx_models import save

T = TypeVar("T")
LARGE = 6000  # floats: more than what is copied
TABLE = np.arange(20, dtype=np.float32).reshape(10, 2)


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = relu(x), of any number of rows and columns."""
    return save(
        tmp_path_factory.mktemp("models") / "relu.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", "m"])],
        [("y", TensorProto.FLOAT, ["n", "m"])],
    )


@pytest.fixture(scope="module")
def lookup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a table of ten; onnxruntime refuses an index beyond."""
    return save(
        tmp_path_factory.mktemp("models") / "lookup.onnx",
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", TensorProto.INT64, ["n"])],
        [("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(TABLE, "table")],
    )


class Ask(Job):
    """A request of a test."""

    __slots__ = ("outcome",)

    def done(self, outcome: Outputs | Exception, rung: Rung | None) -> None:
        raise AssertionError("a runner hands jobs back, it does not answer them")


def ask(array: NDArray[Any]) -> Ask:
    return Ask({"x": array}, rows=len(array), key=None)


def on_loop(work: Callable[[], Coroutine[Any, Any, T]], *, fast: bool = True) -> T:
    loop = new_event_loop() if fast else asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(work(), 30))
    finally:
        loop.close()


async def run(runner: ProcessRunner, jobs: Sequence[Job]) -> list[Outputs | Exception]:
    answered: asyncio.Future[Batch] = asyncio.get_running_loop().create_future()
    runner.start(jobs, answered.set_result)
    return list((await answered).results)


async def ended(runner: ProcessRunner) -> bool:
    return await asyncio.to_thread(runner.wait_closed, 10)


def in_runner(
    path: Path,
    work: Callable[[ProcessRunner], Coroutine[Any, Any, T]],
    *,
    fast: bool = True,
    stats: Stats | None = None,
    limits: WorkerLimits | None = None,
    on_lost: Callable[[WorkerLost], None] | None = None,
) -> T:
    """Drive a runner on a loop; nothing of it may be left afterwards."""
    on_loop(lambda: asyncio.sleep(0))  # what uvloop keeps for good is there from now on
    before = descriptors()

    async def whole() -> T:
        session = open_process(path, "onnxruntime", {}, name="a model", limits=limits)
        runner = ProcessRunner(session, stats=stats or Stats(), on_lost=on_lost)
        memory = weakref.ref(session.worker.arena.memory)
        try:
            return await work(runner)
        finally:
            runner.close()
            assert await ended(runner)
            await asyncio.sleep(0.05)
            del session, runner
            gc.collect()
            assert memory() is None, "its arena is unmapped"

    found = on_loop(whole, fast=fast)
    assert descriptors() <= before
    return found


@pytest.mark.parametrize("fast", [False, True])
def test_jobs_that_ran_together_have_their_own_rows(relu: Path, fast: bool) -> None:
    stats = Stats()

    async def work(runner: ProcessRunner) -> None:
        for columns in (3, LARGE, 3):
            jobs = [ask(np.full((n, columns), n, np.float32)) for n in (1, 2, 3)]
            for job, result in zip(jobs, await run(runner, jobs), strict=True):
                assert not isinstance(result, Exception)
                np.testing.assert_array_equal(result["y"], job.inputs["x"], strict=True)
        assert runner.place == "process"
        assert (runner.memory_bytes or 0) > 1 << 20

    in_runner(relu, work, fast=fast, stats=stats)
    assert (stats.snapshot().executions, stats.snapshot().inferences) == (3, 18)


def test_a_body_is_received_where_the_child_reads_it(relu: Path) -> None:
    async def work(runner: ProcessRunner) -> None:
        jobs = []
        for number in (1, 2):
            body = runner.allocate(16 + LARGE * 4)
            assert body is not None
            array = np.frombuffer(body, np.float32, LARGE, 16).reshape(1, LARGE)
            body[16:] = np.full(LARGE, number, np.float32).tobytes()
            jobs.append(ask(array))
            del body, array
        jobs.append(ask(np.full((1, LARGE), 3, np.float32)))
        first, second, third = await run(runner, jobs)
        for number, result in ((1, first), (2, second), (3, third)):
            assert not isinstance(result, Exception)
            assert set(result["y"].flat) == {number}

    in_runner(relu, work)


def test_bodies_leave_room_for_batches(relu: Path) -> None:
    async def work(runner: ProcessRunner) -> None:
        held = [runner.allocate(150_000) for _ in range(8)]

        assert [body is not None for body in held] == [True] * 2 + [False] * 6
        assert runner.allocate(100) is None, "small bodies are copied"
        (result,) = await run(runner, [ask(np.ones((1, 50_000), np.float32))])
        assert not isinstance(result, Exception)
        (result,) = await run(runner, [ask(np.ones((1, 500_000), np.float32))])
        assert isinstance(result, Overloaded)
        assert not runner.is_lost

    in_runner(relu, work, limits=WorkerLimits(arena_bytes=1 << 20))


def test_none_fails_for_its_neighbour(lookup: Path) -> None:
    async def work(runner: ProcessRunner) -> None:
        indices = [[1], [99], [2, 3]]
        results = await run(runner, [ask(np.array(index)) for index in indices])

        assert isinstance(results[1], EngineError)
        assert "out of data bounds" in results[1].message
        for index, result in ((indices[0], results[0]), (indices[2], results[2])):
            assert not isinstance(result, Exception)
            np.testing.assert_array_equal(result["y"], TABLE[index])

    in_runner(lookup, work)


def test_a_child_killed_over_a_batch_is_told_to_each_of_its_jobs(relu: Path) -> None:
    async def work(runner: ProcessRunner) -> None:
        jobs = [ask(np.ones((1, 2), np.float32))] * 2
        await run(runner, jobs)
        os.kill(runner.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.1, os.kill, runner.pid, signal.SIGKILL)
        for result in await run(runner, jobs):
            assert isinstance(result, WorkerLost)
            assert result.message == "a model: its process died: signal 9 (SIGKILL)"
        assert runner.is_lost
        (late,) = await run(runner, jobs[:1])
        assert isinstance(late, WorkerLost)
        assert runner.allocate(1 << 20) is None

    in_runner(relu, work)


def test_a_child_that_hangs_is_ended(relu: Path) -> None:
    async def work(runner: ProcessRunner) -> None:
        os.kill(runner.pid, signal.SIGSTOP)
        (result,) = await run(runner, [ask(np.ones((1, 2), np.float32))])

        assert isinstance(result, WorkerLost)
        assert result.message == "a model: its process hung: no answer within 0.3 s"
        assert runner.is_lost
        assert await ended(runner)

    in_runner(relu, work, limits=WorkerLimits(run_s=0.3))


def test_a_child_that_grows_too_large_is_ended(tmp_path: Path) -> None:
    # As many megabytes as it is asked for.
    path = save(
        tmp_path / "grow.onnx",
        [
            helper.make_node("ConstantOfShape", ["x"], ["large"]),
            helper.make_node("Add", ["large", "large"], ["more"]),
            helper.make_node("ReduceSum", ["more"], ["y"]),
        ],
        [("x", TensorProto.INT64, [2])],
        [("y", TensorProto.FLOAT, [1, 1])],
    )
    probe = open_process(path, "onnxruntime", {}, name="a model")
    limit = own_bytes(probe.pid) + (48 << 20)
    probe.close()

    async def work(runner: ProcessRunner) -> None:
        (small,) = await run(runner, [ask(np.array([256, 1024]))])
        assert not isinstance(small, Exception)
        results: list[Outputs | Exception] = [small]
        while not isinstance(results[-1], Exception):
            results += await run(runner, [ask(np.array([1024, 64 << 10]))])

        assert isinstance(results[-1], WorkerLost)
        assert f"exceeded its memory budget of {limit >> 20} MB" in results[-1].message
        assert runner.is_lost

    in_runner(path, work, limits=WorkerLimits(memory_bytes=limit))


def test_a_child_that_dies_idle_is_told_at_once(relu: Path) -> None:
    told: list[WorkerLost] = []

    async def work(runner: ProcessRunner) -> None:
        runner.attach(asyncio.get_running_loop())
        os.kill(runner.pid, signal.SIGSEGV)
        assert await ended(runner)
        await asyncio.sleep(0.05)

        assert [e.message for e in told] == ["a model: its process died: signal 11 (SIGSEGV)"]
        assert runner.is_lost

    in_runner(relu, work, on_lost=told.append)


def test_a_runner_that_is_closed_answers_its_batch_first(relu: Path) -> None:
    async def work(runner: ProcessRunner) -> None:
        results = asyncio.ensure_future(run(runner, [ask(np.ones((1, 2), np.float32))]))
        await asyncio.sleep(0)
        runner.close()
        (result,) = await results
        assert not isinstance(result, Exception)

        assert await ended(runner)
        assert not runner.is_lost

    in_runner(relu, work)


def test_a_runner_that_never_ran_is_closed_without_a_loop(relu: Path) -> None:
    on_loop(lambda: asyncio.sleep(0))
    before = descriptors()
    runner = ProcessRunner(open_process(relu, "onnxruntime", {}, name="relu"), stats=Stats())
    runner.close()

    assert runner.wait_closed(0)
    assert runner.allocate(1 << 20) is None
    (late,) = on_loop(lambda: run(runner, [ask(np.ones((1, 2), np.float32))]))
    assert isinstance(late, WorkerLost)
    assert late.message == "relu: its process is closed"
    assert descriptors() <= before
