"""The measured server as a process, and the models that it is measured with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from edgekit_runtime.capacity import wire
from edgekit_runtime.capacity.generators import Generators
from tests import bundles

# Model, shape of one request, runs or requests in one round.
MODELS: dict[str, tuple[bytes, tuple[int, ...], int]] = {
    "mlp": (bundles.mlp((256, 256, 256, 10)), (1, 256), 4000),
    "convnet": (bundles.convnet(size=224, channels=28, layers=6), (1, 3, 224, 224), 100),
    # Between the two: much dearer to run than to refuse, and a generator can ask three times of it.
    "middle": (bundles.convnet(size=64, channels=64, layers=6), (1, 3, 64, 64), 400),
}
MEASURED = ("mlp", "convnet")


class Server:
    """The measured process, until the block ends.

    Args:
        folders: unpacked bundles.
        workers: where models run: auto, loop, thread or process.
        queue_limit: requests that may wait for a model.
    """

    def __init__(
        self, folders: Sequence[Path], *, workers: str = "auto", queue_limit: int = 64
    ) -> None:
        words = ["--workers", workers, "--queue", str(queue_limit), *map(str, folders)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.server", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hello: dict[str, Any] = self._line()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        return str(self.hello["address"])

    def cpu_s(self) -> float:
        """CPU seconds of the process and its workers so far."""
        return float(self._ask("cpu"))

    def run(self, model: str, count: int) -> dict[str, float]:
        """Run a model in process: `cpu_s` of all runs, `p50_us` of one."""
        found: dict[str, float] = self._ask(f"run {model} {count}")
        return found

    def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the server ended with code {self._process.wait()}")
        return json.loads(line)


def write(folder: Path, names: Sequence[str] = MEASURED) -> list[Path]:
    """Bundles of these models, unpacked."""
    return [bundles.unpacked(folder, name=name, model=MODELS[name][0]).path for name in names]


def messages(
    generators: Generators, model: str, *, count: int = 4, timeout_us: int | None = None
) -> tuple[str, ...]:
    """Binary requests with different inputs."""
    return generators.messages(
        [request(model, seed=seed, timeout_us=timeout_us) for seed in range(count)]
    )


def request(model: str, *, seed: int = 0, timeout_us: int | None = None) -> bytes:
    """One binary request."""
    shape = MODELS[model][1]
    array = bundles.samples(shape[0], shape[1:], seed=seed)
    return wire.request(model, {"x": array}, timeout_us=timeout_us)


@contextmanager
def busy() -> Iterator[None]:
    """Keep one core busy from another process."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()
