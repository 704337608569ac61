"""Convert: an ONNX model as a float `.tflite` of batch 1, checked against the model it came from.

onnx2tf decides layouts for itself: images come out with their channels last. What it did to an
input or output is not read off shapes, which are ambiguous, but found by running both files on the
same values; a conversion that answers differently in every layout is refused.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.errors import BuildError, EngineError, ToolChainMissing
from edgekit.manifest import TensorSpec
from edgekit.recipe import Split
from edgekit_converters import tflite
from edgekit_converters.data import synthetic
from edgekit_converters.normal.infer import infer
from edgekit_converters.normal.interface import spec_of
from edgekit_converters.normalise import fixed, serialise
from edgekit_converters.targets import Job
from edgekit_converters.targets.tflite import Port, TfliteFile
from edgekit_converters.toolchains import environments
from edgekit_converters.toolchains.driving import LimitBroken, drive
from edgekit_runtime.engines import ENGINES, Session, Tensors

CHAIN = "onnx2tf"
_FILE, _PORTS = "model.tflite", "ports.json"
_FOREIGN = "ONNX_"
# Float kernels of two engines differ by rounding, about 2e-5 on EfficientNet-Lite0.
_TOLERANCE = 1e-3


class _Ports(msgspec.Struct, frozen=True):
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def float_file(model: Path, job: Job) -> TfliteFile:
    """The float `.tflite` of an ONNX file in normal form, converted once for all targets.

    Raises:
        ToolChainMissing: onnx2tf is not installed.
        BuildError: onnx2tf refused the model, or what it wrote answers differently.
    """
    closed = closed_model(onnx.load_model(model))
    content = serialise(closed)
    facts = {
        "model": hashlib.sha256(content).hexdigest(),
        "lock": environments.lock_sha256(CHAIN),
    }

    def make(folder: Path) -> None:
        source = job.folder / f"{facts['model'][:16]}.closed.onnx"
        source.write_bytes(content)
        made = folder / _FILE
        try:
            request = {"model": str(source.absolute()), "artifact": str(made.absolute())}
            drive(CHAIN, request, driver=CHAIN, folder=job.folder, produces=[made])
            _require_builtin(made)
            ports = _ports(closed, source, made)
        except (ToolChainMissing, LimitBroken):
            raise
        except BuildError as e:
            raise BuildError(
                f"the model cannot be converted to TFLite: {e.message}",
                hint=e.hint or "build for an engine that takes ONNX",
            ) from e
        finally:
            source.unlink()
        (folder / _PORTS).write_bytes(msgspec.json.encode(ports))

    folder = job.shared("tflite-float", facts, make)
    ports = msgspec.json.decode((folder / _PORTS).read_bytes(), type=_Ports)
    return TfliteFile(path=folder / _FILE, inputs=ports.inputs, outputs=ports.outputs)


def closed_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for one sample at a time: an open first axis of its inputs is 1."""
    shapes = {
        spec.name: (1, *spec.shape[1:])
        for spec in map(spec_of, model.graph.input)
        if spec.shape[:1] == (-1,)
    }
    closed = fixed(model, shapes)
    infer(closed, [])
    return closed


def permutations(source: Sequence[int], file: Sequence[int]) -> Iterator[tuple[int, ...] | None]:
    """Ways in which axes of a source may stand in a file: unchanged, or with channels last."""
    if tuple(source) == tuple(file):
        yield None
    last = (0, *range(2, len(source)), 1)
    if len(source) > 2 and [source[axis] for axis in last] == list(file):
        yield last


def difference(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """How far an array is from another of its shape, by its norm; 0 for equal ones."""
    if wanted.dtype.kind != "f":
        return float(np.mean(wanted != found)) if wanted.size else 0.0
    wanted, found = (np.nan_to_num(array.astype(np.float64)) for array in (wanted, found))
    return float(np.linalg.norm(wanted - found) / max(float(np.linalg.norm(wanted)), 1e-12))


def _require_builtin(made: Path) -> None:
    """Refuse a file with operators that onnx2tf only wrote down by their ONNX names."""
    names = {operator.name for operator in tflite.operators(made)}
    foreign = sorted(name.removeprefix(_FOREIGN) for name in names if name.startswith(_FOREIGN))
    if foreign:
        raise BuildError(f"{', '.join(foreign)} has no form there that {CHAIN} knows")


def _ports(closed: onnx.ModelProto, source: Path, made: Path) -> _Ports:
    inputs = tuple(spec_of(value) for value in closed.graph.input)
    samples = synthetic(inputs, Split()).golden.arrays
    feeds = {spec.name: np.asarray(samples[spec.name])[:1] for spec in inputs}
    feeds = {spec.name: feeds[spec.name].reshape(spec.shape) for spec in inputs}
    wanted = _run(ENGINES.get("onnxruntime"), source, feeds)
    try:
        session = ENGINES.get("litert").open(made, options={})
    except EngineError as e:
        raise BuildError(f"what {CHAIN} wrote cannot be opened: {e.message}") from e
    try:
        return _matched(session, inputs, feeds, wanted)
    except EngineError as e:
        raise BuildError(f"what {CHAIN} wrote cannot be run: {e.message}") from e
    finally:
        session.close()


def _matched(
    session: Session, inputs: Sequence[TensorSpec], feeds: Tensors, wanted: Tensors
) -> _Ports:
    """The layouts of inputs and outputs at which the file answers as the model does."""
    there = {spec.name: spec for spec in (*session.inputs, *session.outputs)}
    missing = [name for name in (*feeds, *wanted) if name not in there]
    if missing or len(session.inputs) != len(inputs):
        raise BuildError(f"what {CHAIN} wrote has no tensor {(missing or ['?'])[0]!r}")
    ways = [list(permutations(spec.shape, there[spec.name].shape)) for spec in inputs]
    nearest: tuple[float, str] = (float("inf"), "")
    for way in itertools.product(*ways):
        placed = dict(zip(feeds, way, strict=True))
        answers = session.run({name: _turned(feeds[name], axes) for name, axes in placed.items()})
        outputs = {name: _layout(array, answers[name]) for name, array in wanted.items()}
        worst = max((error, name) for name, (error, _) in outputs.items())
        if worst[0] <= _TOLERANCE:
            return _Ports(
                inputs=tuple(Port(name=n, tensor=n, axes=axes) for n, axes in placed.items()),
                outputs=tuple(Port(name=n, tensor=n, axes=a) for n, (_, a) in outputs.items()),
            )
        nearest = min(nearest, worst)
    if not nearest[1]:
        raise BuildError(f"what {CHAIN} wrote has inputs of shapes that are not the model's")
    raise BuildError(
        f"what {CHAIN} wrote answers differently: output {nearest[1]!r} is off by"
        f" {nearest[0]:.2g} of its norm, {_TOLERANCE} is allowed"
    )


def _layout(wanted: NDArray[Any], found: NDArray[Any]) -> tuple[float, tuple[int, ...] | None]:
    """The nearest layout of an output, and how far it is."""
    tried = [
        (difference(_turned(wanted, axes), found), axes)
        for axes in permutations(wanted.shape, found.shape)
    ]
    return min(tried, key=lambda item: item[0], default=(float("inf"), None))


def _turned(array: NDArray[Any], axes: tuple[int, ...] | None) -> NDArray[Any]:
    return array if axes is None else array.transpose(axes)


def _run(engine: Any, path: Path, feeds: Tensors) -> Mapping[str, NDArray[Any]]:
    session = engine.open(path, options={})
    try:
        answers: Mapping[str, NDArray[Any]] = session.run(feeds)
        return answers
    finally:
        session.close()
