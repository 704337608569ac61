"""A thousand load/unload cycles over the repository API: does the memory come back?

    python -m benchmarks.serving.cycles --cycles 1000 --json out.json

The server is `edgekit run`. In each cycle the model is loaded, answers one request and is unloaded;
PSS is compared between two moments at which nothing is loaded: after the first cycles, when
allocators have what they want to keep, and at the end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.serving import holdings, subject
from benchmarks.serving.subject import MODELS
from edgekit_runtime.capacity.target import started
from edgekit_runtime.capacity.wire import Connection
from tests import bundles

WARM_UP = 50


class Client:
    """Loads, asks and unloads one model."""

    def __init__(self, address: str, model: str) -> None:
        self._address = address
        self._model = model
        self._message = subject.request(model)

    def cycle(self) -> None:
        self._repository("load")
        self._infer()
        self._repository("unload")

    def _repository(self, verb: str) -> None:
        host = self._address.partition("//")[2]
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("POST", f"/v2/repository/models/{self._model}/{verb}", body=b"{}")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{verb} answers {answer.status}: {body.decode()}")

    def _infer(self) -> None:
        connection = Connection(self._address)
        connection.sock.setblocking(True)
        connection.send(self._message)
        while not connection.receive():
            pass
        connection.close()
        if connection.status != 200:
            raise SystemExit(f"a request is answered {connection.status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--model", default="mlp", choices=list(MODELS))
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        bundle = bundles.write(Path(name), name=given.model, model=MODELS[given.model][0])
        words = ["--insecure", "--listen", "127.0.0.1:0", "--workers", given.workers]
        with started(bundle, words) as target:
            assert target.pid is not None
            client = Client(target.address, given.model)
            client.cycle()
            for _ in range(min(WARM_UP, given.cycles)):
                client.cycle()
            before = holdings.settled(target.pid)
            for _ in range(given.cycles):
                client.cycle()
            after = holdings.settled(target.pid)
    found: dict[str, Any] = {
        "model": given.model,
        "workers": given.workers,
        "cycles": given.cycles,
        "seconds": time.monotonic() - began,
        "before": before,
        "after": after,
        "growth": holdings.growth(before, after),
    }
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
