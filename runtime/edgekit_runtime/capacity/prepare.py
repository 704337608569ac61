"""Prepare: what both commands do before they measure.

Requests are the golden inputs of the bundle, sent in turn, so that indexes and texts are ones that
the model takes.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import signing
from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit.errors import UsageError
from edgekit_runtime.capacity import wire
from edgekit_runtime.capacity.generators import Generators
from edgekit_runtime.capacity.resources import cores_allowed
from edgekit_runtime.capacity.target import Target, started
from edgekit_runtime.engines.batches import iter_batches
from edgekit_runtime.opening import open_trusted, run_cache

MAX_MESSAGES = 16
MAX_BATCH_BYTES = 16 << 20
MIN_SECONDS = 5.0

Inputs = dict[str, NDArray[Any]]


class Prepared:
    """A bundle that is being served, and who drives it.

    Attributes:
        inputs: one sample each, as the model takes them.
    """

    def __init__(self, target: Target, generators: Generators, inputs: list[Inputs]) -> None:
        self.target = target
        self.generators = generators
        self.inputs = inputs
        self.singles = generators.messages([self._request(one) for one in inputs])

    def batch(self, rows: int) -> tuple[str, ...] | None:
        """A request with so many samples; None where the model takes no batches or it is large."""
        specs = self.target.inputs()
        size = sum(array.nbytes for array in self.inputs[0].values()) * rows
        if any(spec.shape[:1] != (-1,) for spec in specs) or size > MAX_BATCH_BYTES:
            return None
        pool = [self.inputs[row % len(self.inputs)] for row in range(rows)]
        stacked = {name: np.concatenate([one[name] for one in pool]) for name in pool[0]}
        return self.generators.messages([self._request(stacked)])

    def _request(self, inputs: Inputs) -> bytes:
        return wire.request(self.target.model, inputs, version=self.target.version)


@contextmanager
def prepared(
    path: Path,
    *,
    server: str | None,
    listen: str | None,
    seconds: float,
    generators: int | None,
    trust: Sequence[Path],
    insecure: bool,
    run_options: Sequence[str],
) -> Iterator[Prepared]:
    """Check a bundle, serve it if nobody does, and start the load generators.

    Whatever ends the block, Ctrl-C and SIGTERM included, ends them too.

    Raises:
        UsageError: options that do not go together.
        BundleError: the bundle is damaged or not trusted.
        ServingError: the server does not start, or cannot be reached.
    """
    if not MIN_SECONDS <= seconds < math.inf:
        raise UsageError(f"--seconds must be at least {MIN_SECONDS:g}", hint="the default is 30")
    if server and (listen or run_options):
        raise UsageError(
            "--server drives a server as it is: --listen and options after -- are for a new one",
            hint="leave them out, or leave out --server",
        )
    if path.suffix in (".onnx", ".tflite"):
        raise UsageError(
            f"{path} is a model, not a bundle", hint="edgekit build makes one: edgekit build --help"
        )
    trusted = signing.trusted_keys(trust)
    opened = open_trusted(path, trusted=trusted, insecure=insecure, cache=run_cache())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = [*(word for key in trust for word in ("--trust", str(key)))]
    words += [*(["--insecure"] if insecure else []), "--listen", listen or "127.0.0.1:0"]
    with _target(opened.bundle, path, server, [*words, *run_options]) as target:
        inputs = _samples(opened.bundle, target)
        count = generators or max(1, int(cores_allowed(None)) // 2)
        with Generators(target.address, count=count) as driving:
            yield Prepared(target, driving, inputs)


@contextmanager
def _target(
    bundle: Bundle, path: Path, server: str | None, words: Sequence[str]
) -> Iterator[Target]:
    if server is None:
        with started(path, words) as target:
            yield target
        return
    manifest = bundle.manifest
    yield Target(server, model=manifest.name, version=manifest.version, pid=None)


def _samples(bundle: Bundle, target: Target) -> list[Inputs]:
    arrays = bundle.tensors(GOLDEN_INPUTS)
    batches = iter_batches(target.inputs(), arrays, size=1)
    return [inputs for inputs, _ in zip(batches, range(MAX_MESSAGES), strict=False)]
