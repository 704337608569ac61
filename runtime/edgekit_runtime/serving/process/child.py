"""Child: the process that holds a model. `python -m` starts it; only `worker` should.

    python -m edgekit_runtime.serving.process.child DOORBELL MEMORY LIFELINE

The arguments are descriptors that it inherits: its end of the doorbell, the arena, and a pipe whose
other end only the parent holds and never writes to. It ends when the doorbell is closed. Should the
parent die while the engine hangs, the pipe's end has the kernel kill it. (`PR_SET_PDEATHSIG` would
already do so when the *thread* ends that started it, and models are loaded by threads.)

What an engine writes to standard output is sent to the daemon's log: `worker` sees to it.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit_runtime.engines import ENGINES, Rests, Session, Tensors
from edgekit_runtime.serving.process import layouts
from edgekit_runtime.serving.process.layouts import (
    NUMBERS,
    Content,
    Frame,
    Layout,
    Numbered,
    Told,
)
from edgekit_runtime.serving.process.memory import give_back
from edgekit_runtime.serving.process.messages import (
    PACKET_BYTES,
    Answer,
    Done,
    Failed,
    More,
    Open,
    Opened,
    Rest,
    Run,
    Write,
    decode_question,
    encode,
)

_MESSAGE_CHARS = 8000
# Should the board run out of memory, the kernel ends a model rather than the daemon.
_OOM_SCORE = "500"


class Results(NamedTuple):
    """What a run gave."""

    layout: Layout
    frame: Frame
    contents: list[Content]
    text_bytes: tuple[int, ...]
    run_ns: int


class Model:
    """An open model, and the arena that its tensors lie in."""

    def __init__(self, session: Session, memory: mmap) -> None:
        self.session = session
        self._memory = memory
        self._view = memoryview(memory)
        self._inputs = Told()
        self._outputs = Numbered()
        self._frames: dict[int | None, Frame] = {}
        # Packets that come again to the byte, and what they say.
        self._usual: dict[bytes, tuple[Run, Tensors]] = {}
        self._waiting: Results | None = None

    def answer(self, packet: bytes) -> Answer | None:
        """Do what a packet asks for, and say what came of it if it wants to know."""
        usual = self._usual.get(packet)
        if usual is not None:
            return self._run(*usual)
        question = decode_question(packet)
        if isinstance(question, Run):
            frame = self._inputs.frame(question.layout, question.fresh)
            inputs = frame.read(self._view, question.starts, question.text_bytes)
            if question.fresh is not None or len(self._usual) == NUMBERS:
                # A number may mean something else from now on.
                self._usual.clear()
            elif not question.text_bytes:
                self._usual[packet] = question, inputs
            return self._run(question, inputs)
        if isinstance(question, Rest):
            if isinstance(self.session, Rests):
                self.session.rest()
            return None
        assert isinstance(question, Write), question
        results, self._waiting = self._waiting, None
        assert results is not None, "nothing waits to be written"
        return self._written(results, question.answer)

    def _run(self, question: Run, inputs: Tensors) -> Answer:
        for start, to, size in question.moves:
            self._memory.move(to, start, size)
        begun = time.perf_counter_ns()
        outputs = self.session.run(inputs)
        results = self._results(outputs, time.perf_counter_ns() - begun)
        _, size = results.frame.places(results.text_bytes)
        if size > question.room:
            self._waiting = results
            return More(size)
        return self._written(results, question.answer)

    def _results(self, outputs: dict[str, NDArray[Any]], run_ns: int) -> Results:
        arrays = [np.asarray(output) for output in outputs.values()]
        layout = tuple(
            [(n, array.dtype.str, array.shape) for n, array in zip(outputs, arrays, strict=True)]
        )
        frame = self._frames.get(self._outputs.known(layout)) or Frame(layout)
        contents = [layouts.content(array) for array in arrays]
        texts = tuple([len(item) for item in contents if not isinstance(item, np.ndarray)])
        return Results(layout, frame, contents, texts, run_ns)

    def _written(self, results: Results, place: int) -> Done:
        starts, _ = results.frame.places(results.text_bytes)
        for start, item in zip(starts, results.contents, strict=True):
            layouts.write(self._view, place + start, item)
        number, fresh = self._outputs.number(results.layout)
        self._frames[number] = results.frame
        return Done(number, fresh, results.text_bytes, results.run_ns)


def opened(packet: bytes, memory: mmap) -> Model:
    """Open an artefact in its engine."""
    question = decode_question(packet)
    assert isinstance(question, Open), question
    engine = ENGINES.get(question.engine)
    session = engine.open(Path(question.artifact), options=question.options)
    gc.collect()
    give_back()
    # What was imported and opened stays: the collector need not look at it again.
    gc.freeze()
    return Model(session, memory)


def failed(error: Exception) -> Failed:
    """An error for the parent to raise; one that nobody foresaw is told in the log, too."""
    if isinstance(error, EdgekitError):
        return Failed(type(error).__name__, error.message[:_MESSAGE_CHARS], error.hint)
    traceback.print_exception(error)
    text = f"{type(error).__name__}: {error}"
    return Failed("EngineError", text[:_MESSAGE_CHARS], "the log has the engine's traceback")


def described(session: Session) -> Opened:
    """What the parent may know of a model."""
    return Opened(session.inputs, session.outputs, session.providers, session.placement)


def serve(doorbell: int, memory: mmap) -> None:
    """Answer packets until the doorbell is closed; the first opens the model."""
    buffer = bytearray(PACKET_BYTES)
    view = memoryview(buffer)
    model: Model | None = None
    while length := os.readv(doorbell, [buffer]):
        packet = bytes(view[:length])
        answer: Answer | None
        try:
            if model is None:
                model = opened(packet, memory)
                answer = described(model.session)
            else:
                answer = model.answer(packet)
        except Exception as e:  # noqa: BLE001 - handed to the parent, which raises it
            answer = failed(e)
        if answer is not None:
            os.write(doorbell, packed(answer))
    if model is not None:
        model.session.close()


def packed(answer: Answer) -> bytes:
    """An answer as a packet; one that is too long for it says so instead."""
    raw = encode(answer)
    if len(raw) <= PACKET_BYTES:
        return raw
    return encode(failed(ValueError(f"the model's interface takes {len(raw)} bytes")))


def end_with(lifeline: int) -> None:
    """Be killed when the other end of this pipe is closed, whatever the process does then."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)


def main() -> None:
    doorbell, descriptor, lifeline = map(int, sys.argv[1:])
    end_with(lifeline)
    # A service manager stops a daemon by a signal to all its processes; this one still has requests
    # to answer, and ends when the daemon has no more.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, "ascii")
    memory = mmap(descriptor, 0)
    os.close(descriptor)
    with suppress(BrokenPipeError, ConnectionResetError):
        serve(doorbell, memory)
    # Neither libraries nor the interpreter have anything left to put in order.
    os._exit(0)


if __name__ == "__main__":
    main()
