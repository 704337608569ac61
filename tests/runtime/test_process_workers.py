"""A model in a child process answers as it does in ours, and leaves nothing when it ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekit.errors import EngineError, EngineNotInstalled, Overloaded, UsageError, WorkerLost
from edgekit_runtime.engines import ENGINES, Engine, Session
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.serving.process.layouts import NUMBERS
from edgekit_runtime.serving.process.limits import WorkerLimits
from edgekit_runtime.serving.process.memory import own_bytes
from edgekit_runtime.serving.process.session import ProcessSession, open_process
from tests.runtime.descriptors import descriptors
from tests.runtime.engine_contract import EngineContract
from tests.runtime.onnx_models import TYPES, OnnxModels, save

LARGE = 6000  # floats: more than what is copied
ENGINE = ENGINES.get("onnxruntime")


class InAProcess:
    """onnxruntime, each of its sessions in a process of its own."""

    name = ENGINE.name
    evidence = ENGINE.evidence
    evidence_note = ENGINE.evidence_note

    def __init__(self) -> None:
        self.sessions: list[ProcessSession] = []

    def version(self) -> str:
        return ENGINE.version()

    def open(self, artifact: Path, *, options: Mapping[str, Any]) -> Session:
        session = open_process(artifact, self.name, options, name="a model")
        self.sessions.append(session)
        return session


class TestInAProcess(OnnxModels, EngineContract):
    """What holds of an engine holds of it in a child."""

    apart = InAProcess()
    engine: ClassVar[Engine] = apart

    @pytest.fixture(autouse=True)
    def _closed(self) -> Iterator[None]:
        yield
        while self.apart.sessions:
            self.apart.sessions.pop().close()

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        return self.relu(tmp_path)

    def test_closing_gives_memory_back(self, tmp_path: Path) -> None:
        session = open_process(self.heavy(tmp_path), "onnxruntime", {}, name="heavy")
        assert (session.memory_bytes or 0) > 4 << 20
        session.close()

        assert session.memory_bytes is None


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
def session(relu: Path) -> Iterator[ProcessSession]:
    session = open_process(relu, "onnxruntime", {}, name="relu")
    yield session
    session.close()


def test_every_datatype_comes_back_as_it_went(tmp_path: Path) -> None:
    path = save(
        tmp_path / "same.onnx",
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in TYPES],
        [(name, kind, ["n", "m"]) for name, kind in TYPES.items()],
        [(f"{name}_out", kind, ["n", "m"]) for name, kind in TYPES.items()],
    )
    random = np.random.default_rng(1)
    inputs: dict[str, NDArray[Any]] = {
        name: (random.normal(size=(3, 600)) * 50).astype(DTYPES[name]) for name in TYPES
    }
    inputs["FP64"] = random.normal(size=(3, LARGE))
    texts = [b"", b"caf\xc3\xa9", b"x" * 70_000]
    inputs["BYTES"] = np.array([texts, texts[::-1], texts], dtype=object)
    here = ENGINE.open(path, options={})
    there = open_process(path, "onnxruntime", {}, name="same")
    try:
        for part in (slice(0, 1), slice(0, 3), slice(0, 0), slice(0, 1)):
            given = {name: array[part] for name, array in inputs.items()}
            ours, theirs = here.run(given), there.run(given)

            assert list(ours) == list(theirs)
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name], strict=True)
        assert (here.inputs, here.outputs) == (there.inputs, there.outputs)
        assert (here.providers, here.placement) == (there.providers, there.placement)
    finally:
        there.close()


def test_more_shapes_than_there_are_numbers_are_told_apart(session: ProcessSession) -> None:
    for columns in (*range(1, NUMBERS + 50), *range(1, 60), NUMBERS + 49):
        x = np.full((2, columns), -columns, np.float32)
        x[1] = columns

        np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))


def test_small_and_large_outputs_stay_as_long_as_they_are_held(session: ProcessSession) -> None:
    free = session.worker.arena.free_bytes
    held: list[NDArray[Any]] = []
    for size in (1, LARGE, 100 * LARGE, 1, 100 * LARGE, LARGE):
        x = np.full((1, size), len(held) + 1, np.float32)
        held.append(session.run({"x": x})["y"])

    assert [float(y.min()) for y in held] == [float(y.max()) for y in held] == [1, 2, 3, 4, 5, 6]
    assert session.worker.arena.free_bytes < free
    held.clear()
    assert session.worker.arena.free_bytes == free


def test_an_input_in_the_arena_is_read_where_it_lies(session: ProcessSession) -> None:
    arena = session.worker.arena
    block = arena.take(100 * LARGE * 4)
    assert block is not None
    x: NDArray[np.float32] = np.ndarray((1, 100 * LARGE), np.float32, block.data, 0)
    x[...] = 2
    session.run({"x": x})
    free = arena.free_bytes
    call = session.calls.run([{"x": x}])
    packet = next(call)

    assert free - arena.free_bytes == x.nbytes, "room for the output, and no copy of the input"
    with pytest.raises(StopIteration) as stop:
        call.send(session.worker.ask(packet, limit_s=10))
    assert float(stop.value.value.outputs["y"].sum()) == 200 * LARGE


def test_an_input_that_does_not_fit_is_refused_and_the_next_one_runs(relu: Path) -> None:
    limits = WorkerLimits(arena_bytes=1 << 20)
    session = open_process(relu, "onnxruntime", {}, name="relu", limits=limits)
    try:
        with pytest.raises(Overloaded, match="shared memory"):
            session.run({"x": np.zeros((1, 1 << 18), np.float32)})
        with pytest.raises(Overloaded, match="shared memory"):
            session.run({"x": np.zeros((1, 120_000), np.float32)})  # no room for the output
        for _ in range(3):
            assert session.run({"x": np.ones((1, 50_000), np.float32)})["y"].sum() == 50_000
    finally:
        session.close()


def test_the_parent_imports_no_engine(relu: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from edgekit_runtime.serving.process.session import open_process
session = open_process(Path({str(relu)!r}), "onnxruntime", {{}}, name="relu")
session.close()
print(sorted({{"onnxruntime", "onnx", "asyncio"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert done.stdout.strip() == b"[]"


def test_what_a_child_prints_goes_to_the_log_and_signals_meant_for_us_do_not_end_it(
    session: ProcessSession,
) -> None:
    outputs = {os.readlink(f"/proc/{session.pid}/fd/{number}") for number in (1, 2)}
    os.kill(session.pid, signal.SIGTERM)

    assert outputs == {os.readlink("/proc/self/fd/2")}
    assert os.getsid(session.pid) != os.getsid(0), "Ctrl-C goes to a session"
    assert session.run({"x": np.ones((1, 1), np.float32)})["y"] == 1


def test_errors_of_opening_are_the_engines_own(relu: Path) -> None:
    with pytest.raises(UsageError, match="no engine called 'warp'"):
        open_process(relu, "warp", {}, name="relu")
    with pytest.raises(EngineNotInstalled) as e:
        open_process(relu, "tflite-runtime", {}, name="relu")
    assert e.value.hint


def test_a_worker_that_rests_gives_back_what_a_large_run_took(session: ProcessSession) -> None:
    small, large = np.ones((1, 1), np.float32), np.ones((1, 8 << 20), np.float32)
    session.run({"x": small})
    before = own_bytes(session.pid)
    for _ in range(2):
        session.run({"x": large})
        kept = own_bytes(session.pid) - before
        session.worker.rest()
        session.run({"x": small})

        assert own_bytes(session.pid) - before < 4 << 20 < kept


def test_without_descriptors_no_process_is_started_and_none_is_lost(relu: Path) -> None:
    before = descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    for more in range(8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + more, hard))
        try:
            with pytest.raises(EngineError, match="relu: no worker process can be started: Too"):
                open_process(relu, "onnxruntime", {}, name="relu")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert descriptors() <= before


def test_a_child_that_hangs_while_a_model_loads_is_ended(relu: Path) -> None:
    limits = WorkerLimits(open_s=0.3)
    with pytest.raises(WorkerLost, match=r"relu: its process hung: no answer within 0\.01 s"):
        open_process(relu, "onnxruntime", {}, name="relu", limits=WorkerLimits(open_s=0.01))
    session = open_process(relu, "onnxruntime", {}, name="relu", limits=WorkerLimits(open_s=20))
    session.worker.limits = limits
    os.kill(session.pid, signal.SIGSTOP)
    with pytest.raises(WorkerLost, match=r"relu: its process hung: no answer within 0\.3 s"):
        session.run({"x": np.ones((1, 1), np.float32)})
    session.close()


def test_nothing_of_a_closed_or_lost_worker_is_left(relu: Path) -> None:
    before, threads = descriptors(), os.listdir("/proc/self/task")
    outputs = []
    for kill in (False, True, False):
        session = open_process(relu, "onnxruntime", {}, name="relu")
        outputs.append(session.run({"x": np.ones((1, 100 * LARGE), np.float32)})["y"])
        if kill:
            os.kill(session.pid, signal.SIGKILL)
            with pytest.raises(WorkerLost, match=r"relu: its process died: signal 9 \(SIGKILL\)"):
                session.run({"x": np.ones((1, 1), np.float32)})
        session.close()
        assert session.memory_bytes is None
        with pytest.raises(ChildProcessError):
            os.waitpid(session.pid, os.WNOHANG)

    assert [float(y.sum()) for y in outputs] == [100 * LARGE] * 3, "outputs outlive their worker"
    outputs.clear()
    assert descriptors() <= before
    assert os.listdir("/proc/self/task") == threads
