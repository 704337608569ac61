"""Subjects: a server under comparison, from its start to its end, whole process tree."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.serving.peers import environments, forms, grpc_load
from benchmarks.serving.peers.forms import Array, Form
from edgekit_runtime.capacity import resources
from edgekit_runtime.capacity.generators import Generators

ROOT = Path(__file__).parents[3]
# Module in this package; the first is the floor that a hand-written server sets.
PEERS = (
    "fastapi_raw",
    "mlserver_model",
    "kserve_model",
    "pytriton_server",
    "litserve_api",
    "bentoml_service",
)
START_LIMIT_S = 120.0
CONNECTIONS = 8
TOLERANCE = 1e-4


class Subject:
    """One server with one model; ends with the block.

    Args:
        name: in the table.
        command: starts it; it listens on `port`.
        request: an array as the bytes of an HTTP request.
        answer: headers and body of a reply as an array.
        over_http, over_grpc: forms that it takes there.

    Attributes:
        start_s: seconds, and `start_cpu_s` CPU seconds, to its first right answer.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        port: int,
        *,
        request: Callable[[Array, Form], bytes],
        answer: Callable[[Mapping[str, str], bytes], Array],
        over_http: Sequence[Form],
        over_grpc: Sequence[Form] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._command = [str(word) for word in command]
        self._port = port
        self._request = request
        self._answer = answer
        self._over_http = over_http
        self._over_grpc = over_grpc
        self._environment = {**os.environ, **(environment or {})}
        self._stack = contextlib.ExitStack()
        self._log = Path(tempfile.gettempdir(), f"peer-{name.replace(' ', '-')}.log")
        self.start_s = self.start_cpu_s = 0.0

    @property
    def all_forms(self) -> tuple[Form, ...]:
        return (*self._over_http, *self._over_grpc)

    def __enter__(self) -> Subject:
        began = time.monotonic()
        log = self._stack.enter_context(self._log.open("wb"))
        self._process = subprocess.Popen(
            self._command,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=self._environment,
            start_new_session=True,
        )
        self._stack.callback(self._end)
        self._generators = self._stack.enter_context(
            Generators(f"http://127.0.0.1:{self._port}", connections=CONNECTIONS)
        )
        self._began_s = began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def wait(self, array: Array, expected: Array) -> None:
        """Wait for the first answer, which must be the right one in every form."""
        until = time.monotonic() + START_LIMIT_S
        while True:
            try:
                self.check(array, expected, self._over_http[0])
                break
            except (OSError, http.client.HTTPException):
                if self._process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(
                        f"{self.name} did not start: /tmp/peer-{self.name}.log"
                    ) from None
                time.sleep(0.02)
        self.start_s = time.monotonic() - self._began_s
        self.start_cpu_s = sum(resources.read([self._process.pid]).threads_s.values())
        for form in self.all_forms:
            self.check(array, expected, form)

    def check(self, array: Array, expected: Array, form: Form) -> None:
        """One request; its answer must be right."""
        if form in self._over_grpc:
            given = grpc_load.ask(self._port + 1, grpc_load.message(array))
        else:
            given = self._ask(self._request(array, form))
        if not np.allclose(given.reshape(-1), expected.reshape(-1), atol=TOLERANCE):
            raise SystemExit(f"{self.name} answers {form} wrongly: {given[:4]} not {expected[:4]}")

    def drive(self, array: Array, form: Form, *, duration_s: float) -> dict[str, float]:
        """A closed loop; CPU of the process tree for each request, and requests per second."""
        pid = self._process.pid
        before = resources.read([pid])
        if form in self._over_grpc:
            raw = grpc_load.message(array)
            count, wall_s = grpc_load.closed_loop(
                self._port + 1, raw, connections=CONNECTIONS, duration_s=duration_s
            )
        else:
            messages = self._generators.messages([self._request(array, form)])
            seen = self._generators.closed_loop(
                messages, connections=CONNECTIONS, duration_s=duration_s
            )
            if seen.failed:
                raise SystemExit(f"{self.name}: {seen.failed} requests failed: {seen.statuses}")
            count, wall_s = len(seen.latencies_ns), seen.wall_s
        spent_s = resources.cpu_s(before, resources.read([pid]))
        return {"cpu_us": spent_s / count * 1e6, "requests_per_s": count / wall_s}

    def pss_mb(self) -> float:
        """Memory of the process tree now."""
        return resources.read([self._process.pid]).memory_bytes / 2**20

    def _ask(self, raw: bytes) -> Array:
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as sock:
            sock.sendall(raw)
            reply = http.client.HTTPResponse(sock)
            reply.begin()
            body = reply.read()
        if reply.status != 200:
            raise http.client.HTTPException(f"{reply.status}: {body[:300]!r}")
        headers = {name.lower(): value for name, value in reply.getheaders()}
        return self._answer(headers, body)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def ours(bundle: Path, model: str, *, workers: str) -> Subject:
    """`edgekit run` on a bundle."""
    port = free_port()
    command: list[str | Path] = [sys.executable, "-m", "edgekit", "run", bundle, "--insecure"]
    command += ["--listen", f"127.0.0.1:{port}", "--workers", workers]

    def request(array: Array, form: Form) -> bytes:
        return forms.v2(f"/v2/models/{model}/infer", array, form)

    return Subject(
        f"edgekit {workers}",
        command,
        port,
        request=request,
        answer=forms.v2_answer,
        over_http=("binary", "json"),
    )


def peer(name: str, model: Path, shape: Sequence[int]) -> Subject:
    """A peer in its own environment."""
    module = _module(name)
    interpreter = environment(name)
    port = free_port()
    command = [interpreter, "-m", module.__name__, model, str(port), *map(str, shape)]
    return Subject(
        name,
        command,
        port,
        request=module.request,
        answer=module.answer,
        over_http=module.FORMS,
        over_grpc=getattr(module, "GRPC_FORMS", ()),
        environment={"PYTHONPATH": str(ROOT)},
    )


def environment(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return environments.python(name, _module(name).PACKAGES)


def _module(name: str) -> Any:
    return import_module(f"benchmarks.serving.peers.{name}")


def free_port() -> int:
    """A port with a free one above it."""
    while True:
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as first:
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
                return port
