"""Target: the server that is driven; started here as `edgekit run`, or one that runs already."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import NotServed, ServingError
from edgekit.manifest import TensorSpec
from edgekit.structs import Strict
from edgekit_runtime.capacity import wire

_STOP_TIMEOUT_S = 15.0


class Counters(Strict, frozen=True, kw_only=True):
    """What a model did so far.

    Attributes:
        engine_ns: within the engine, over all variants.
        samples: run; `executions` counts calls of the engine.
        rejected: requests turned away.
        cache_hits: requests that no engine ran for.
    """

    engine_ns: int
    samples: int
    executions: int
    rejected: int
    cache_hits: int


class Target:
    """A model on a server.

    Args:
        address: `http://HOST:PORT` or `unix:PATH`.
        model: its name.
        version: of it.
        pid: of the server's process; None where that is not known.
    """

    def __init__(self, address: str, *, model: str, version: str, pid: int | None) -> None:
        self.address = address
        self.model = model
        self.version = version
        self.pid = pid
        self._path = f"/v2/models/{model}/versions/{version}"

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the model as the server gives them, raising `NotServed`."""
        return msgspec.convert(self._get("")["inputs"], tuple[TensorSpec, ...])

    def variant(self) -> str:
        """The variant that answers by default."""
        return str(self._get("").get("properties", {}).get("variant", ""))

    def counters(self) -> Counters:
        """What the model did so far."""
        (stats,) = self._get("/stats")["model_stats"]
        spent: dict[str, dict[str, int]] = stats["inference_stats"]
        return Counters(
            engine_ns=spent["compute_infer"]["ns"],
            samples=stats["inference_count"],
            executions=stats["execution_count"],
            rejected=spent.get("rejected", {}).get("count", 0),
            cache_hits=spent.get("cache_hit", {}).get("count", 0),
        )

    def _get(self, rest: str) -> dict[str, Any]:
        connection = _Http(self.address)
        try:
            connection.request("GET", self._path + rest, headers={"Host": "localhost"})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise ServingError(
                f"{self.address} does not answer: {e}", hint="see whether the server still runs"
            ) from e
        finally:
            connection.close()
        if answer.status != 200:
            kind = NotServed if answer.status == 404 else ServingError
            text = body[:300].decode(errors="replace")
            raise kind(
                f"{self.address}{self._path}{rest} answers {answer.status}: {text}",
                hint="serve the bundle there that you name here",
            )
        page: dict[str, Any] = json.loads(body)
        return page


@contextmanager
def started(bundle: Path, options: Sequence[str]) -> Iterator[Target]:
    """`edgekit run` on a bundle, until the block ends.

    Args:
        bundle: checked before, so that what the server still says goes to stderr as it is.
        options: of `edgekit run`.

    Raises:
        ServingError: it did not start; it has said why.
    """
    command = [sys.executable, "-m", "edgekit", "run", str(bundle), "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise ServingError(
                    f"`edgekit run` ended with code {process.wait()}",
                    hint="what it says stands above; options after -- go to it",
                )
            hello = json.loads(line)
            served = hello["models"][0]
            yield Target(
                hello["addresses"][0],
                model=served["name"],
                version=served["version"],
                pid=process.pid,
            )
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


class _Http(http.client.HTTPConnection):
    """A connection to any address that `wire.connect` takes."""

    def __init__(self, address: str) -> None:
        super().__init__("localhost")
        self._address = address

    def connect(self) -> None:
        self.sock: socket.socket = wire.connect(self._address)
