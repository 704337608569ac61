"""Source: the model file a build starts from, read once and never trusted.

What the file is, its content says and not its name. What it claims is compared with what it holds
before anything of the claimed size is allocated, and nothing in it is run: a pickle is loaded only
where the user trusts its maker by name. Models of scikit-learn and torch are converted to ONNX in a
process of their own. Where weights come from a second file (a federated round's), they replace
initialisers of the same name, shape and datatype, and the identity of the source covers both files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekit import tensors
from edgekit.errors import DataError, MessageError, ModelError, StorageError
from edgekit_converters.sources import child, onnx_file, pt2
from edgekit_converters.sources.recognise import HEAD_BYTES, Kind, recognise

MAX_SOURCE_BYTES = 4 << 30
TORCH_PYTHON = "EDGEKIT_TORCH_PYTHON"
"""Names an interpreter that has torch and onnxscript, where this one has not."""

Origin = Literal["onnx", "skops", "pickle", "torch"]

_PROGRAMS = Path(__file__).parent / "sources"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX model with all its weights in memory.

    Attributes:
        path: the user's file.
        sha256: over the file; with external data or replaced weights, over the hex digests of
            each file in order (model, external files by name, weights), joined by newlines.
        model: as it stands in the file, or what it was converted to.
        origin: what the file is.
        tools: versions of the distributions that converted it, by name.
    """

    path: Path
    sha256: str
    model: onnx.ModelProto
    format: Literal["onnx"] = "onnx"
    origin: Origin = "onnx"
    tools: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TfliteSource:
    """A TFLite model; it is packaged as it is."""

    path: Path
    sha256: str
    format: Literal["tflite"] = "tflite"

    def copied_to(self, folder: Path) -> Path:
        """The same file in `folder`, where a compiler may write beside it."""
        target = folder / "source.tflite"
        if not target.exists():
            shutil.copyfile(self.path, target)
        return target


Source = OnnxSource | TfliteSource


def read(path: Path, *, weights: Path | None = None, trust_pickle: bool = False) -> Source:
    """Read a model file.

    Args:
        path: ONNX, TFLite, a scikit-learn estimator (skops or a pickle) or a torch ExportedProgram
            (pt2); the content decides, not the name.
        weights: a safetensors file whose arrays replace initialisers of an ONNX model.
        trust_pickle: load pickles, which can run any code of their maker's.

    Raises:
        ModelError: the file is missing, too large, damaged, foreign, claims what it does not hold,
            or cannot be converted.
        BuildError: a distribution that converts it is missing.
        DataError: the weights do not fit the model.
    """
    kind = recognise(path, _head(path))
    if kind == "tflite":
        if weights is not None:
            raise DataError(
                f"{path} is a TFLite model, whose weights cannot be replaced",
                hint="build from the ONNX model",
            )
        return TfliteSource(path, _file_sha256(path))
    files: tuple[Path, ...] = (path,)
    origin: Origin = "onnx"
    tools: Mapping[str, str] = {}
    if kind == "onnx":
        model, beside = onnx_file.read(path)
        files += beside
    else:
        origin = "torch" if kind == "pt2" else kind
        model, tools = _converted(path, kind, trust_pickle=trust_pickle)
    if weights is not None:
        replace_weights(model, _read_weights(weights), str(weights))
        files += (weights,)
    digests = [_file_sha256(file) for file in files]
    joined = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    sha256 = digests[0] if len(digests) == 1 else joined
    return OnnxSource(path, sha256, model, origin=origin, tools=tools)


def replace_weights(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], what: str) -> None:
    """Put arrays in place of the initialisers of the same name.

    Raises `DataError` where a name, shape or datatype is not the model's.
    """
    initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, array in arrays.items():
        if name not in initialisers:
            raise DataError(
                f"{what} has an array {name!r}, which is no initialiser of the model",
                hint=f"the model's are: {', '.join(sorted(initialisers)[:8])}",
            )
        tensor = initialisers[name]
        wanted = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tuple(tensor.dims) != array.shape or wanted != array.dtype:
            raise DataError(
                f"{what}: {name!r} is {array.dtype} {list(array.shape)},"
                f" the model has {wanted} {list(tensor.dims)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{what}: {name!r} holds a value that is not finite")
        tensor.CopyFrom(numpy_helper.from_array(array, name))


def _converted(
    path: Path, kind: Kind, *, trust_pickle: bool
) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """The ONNX form of a model of another framework, and what converted it."""
    if kind == "pickle" and not trust_pickle:
        raise ModelError(
            f"{path} is a pickle, which can run any code when it is loaded",
            hint="save the estimator with skops.io.dump; or give --trust-pickle where you trust"
            " its maker",
        )
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-source-") as folder:
            target = Path(folder) / "model.onnx"
            if kind == "pt2":
                tools = _from_torch(path, target, trust_pickle=trust_pickle)
            else:
                options = ["--trust-pickle"] if kind == "pickle" else []
                tools = child.convert(
                    _PROGRAMS / "sklearn_to_onnx.py",
                    path.resolve(),
                    target,
                    *options,
                    interpreter=sys.executable,
                    what=str(path),
                )
            return _read_converted(path, target), tools
    except OSError as e:
        raise StorageError(
            f"{path} cannot be converted: {e.strerror or e}",
            hint="free space, or set TMPDIR to a folder that has some",
        ) from e


def _read_converted(path: Path, target: Path) -> onnx.ModelProto:
    try:
        return onnx_file.read(target)[0]
    except ModelError as e:
        reason = e.message.removeprefix(str(target)).lstrip(": ")
        raise ModelError(f"{path}, as ONNX: {reason}", hint=e.hint) from e


def _from_torch(path: Path, target: Path, *, trust_pickle: bool) -> Mapping[str, str]:
    program = target.with_suffix(".pt2")
    if trust_pickle:
        program.symlink_to(path.resolve())  # torch knows a program by its suffix
    else:
        pt2.rewrite(path, program)
    return child.convert(
        _PROGRAMS / "torch_to_onnx.py",
        program,
        target,
        interpreter=os.environ.get(TORCH_PYTHON, sys.executable),
        what=str(path),
    )


def _head(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            saved = (path / "saved_model.pb").is_file()
            raise ModelError(
                f"{path} is {'a TensorFlow SavedModel' if saved else 'not a file'}",
                hint="export it to ONNX with tf2onnx" if saved else "name a model file",
            )
        if status.st_size > MAX_SOURCE_BYTES:
            raise ModelError(
                f"{path} has {status.st_size} bytes, a source at most {MAX_SOURCE_BYTES}"
            )
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as e:
        raise ModelError(f"model {path} cannot be read: {e.strerror}", hint="check the path") from e
    if not head:
        raise ModelError(f"{path} is empty", hint="export or download the model again")
    return head


def _read_weights(path: Path) -> dict[str, NDArray[Any]]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"weights {path} is not a file", hint="name a .safetensors file")
        if status.st_size > MAX_SOURCE_BYTES:
            raise DataError(f"{path} has more than {MAX_SOURCE_BYTES} bytes")
        return tensors.decode(path.read_bytes(), what=str(path))
    except OSError as e:
        raise DataError(f"weights {path} cannot be read: {e.strerror}") from e
    except MessageError as e:
        raise DataError(e.message) from e


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
