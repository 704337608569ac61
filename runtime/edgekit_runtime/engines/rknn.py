"""RKNN: runs `.rknn` artefacts on a Rockchip NPU through Rockchip's Toolkit Lite2.

Never run on hardware: the library is for aarch64 boards with Rockchip's driver. Under Arm emulation
its version 2.5 was seen to load, to take a file and to refuse to start without the driver; what is
tested is all that happens around it.

The library tells nothing of a file's tensors, so a variant's options carry them, as the build
writes them there. It answers in float32 whatever the file computes in, and reports what goes wrong
by a return code or by no answer at all; both become errors here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, EngineNotInstalled
from edgekit.manifest import TensorSpec
from edgekit.structs import Strict
from edgekit_runtime.engines import Evidence, Tensors
from edgekit_runtime.engines.library import not_installed, parsed, version_of
from edgekit_runtime.engines.placed import Placed, on_accelerator
from edgekit_runtime.engines.tensors import DTYPES, Layout, channels_last, misfit

CoreMask = Literal["auto", "0", "1", "2", "0_1", "0_1_2", "all"]

PACKAGE = "rknn-toolkit-lite2"
MAGIC = b"RKNN"


class Options(Strict, frozen=True, kw_only=True):
    """What a variant's `options` may say.

    Attributes:
        inputs, outputs: the file's tensors, in its order, with fixed shapes.
        core_mask: which cores of the NPU run it; only rk3588 and rk3576 have several.
        layout: of inputs with four axes, as they are given.
    """

    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    core_mask: CoreMask = "auto"
    layout: Layout = "nchw"


class Rknn:
    """The engine."""

    name = "rknn"
    evidence: Evidence = "never run"
    evidence_note = "under Arm emulation its library loads, and refuses to start without a driver"

    def version(self) -> str:
        """Version of the library here, found without importing it."""
        return version_of(PACKAGE, missing=_not_installed())

    def open(self, artifact: Path, *, options: Mapping[str, Any]) -> RknnSession:
        """Open an `.rknn` file; the library reads it into memory."""
        return RknnSession(artifact, parse(options))


def parse(options: Mapping[str, Any]) -> Options:
    """Check a variant's options, raising `EngineError` that names the wrong one."""
    found = parsed(options, Options, engine="rknn")
    for spec in (*found.inputs, *found.outputs):
        if -1 in spec.shape or spec.datatype == "BYTES":
            raise EngineError(
                f"options of engine rknn are not valid: {spec.name!r} is {spec.datatype}"
                f" {list(spec.shape)}, and an .rknn file has numbers of fixed shapes only"
            )
    return found


def require_rknn(artifact: Path) -> None:
    """Refuse what is no `.rknn` file before the library reads it, raising `EngineError`."""
    try:
        with artifact.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as e:
        raise EngineError(f"rknn cannot open {artifact}: {e.strerror or e}") from e
    if start != MAGIC:
        raise EngineError(f"rknn cannot open {artifact}: it is not an .rknn file")


class RknnSession:
    """An open `.rknn` model."""

    def __init__(self, artifact: Path, options: Options) -> None:
        require_rknn(artifact)
        try:
            from rknnlite.api import RKNNLite
        except ImportError as e:
            raise _not_installed() from e
        self._artifact = artifact
        self._inputs, self._outputs = options.inputs, options.outputs
        self._layout = options.layout
        library = RKNNLite()
        mask = getattr(RKNNLite, f"NPU_CORE_{options.core_mask.upper()}")
        if library.load_rknn(str(artifact)) != 0 or library.init_runtime(core_mask=mask) != 0:
            library.release()
            raise EngineError(
                f"rknn cannot open {artifact}: the library refused, and printed why",
                hint="librknnrt.so and the RKNPU driver must be as new as the toolkit of the file",
            )
        self._library = library

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def providers(self) -> tuple[str, ...]:
        return ("NPU",)

    @property
    def placement(self) -> Placed:
        return on_accelerator()

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if self._library is None:
            raise EngineError(f"{self._artifact}: the session is closed")
        if (reason := misfit(self._inputs, inputs)) is not None:
            raise EngineError(f"{self._artifact.name}: {reason}")
        # Some versions know channels last alone, and all take it where no format is named.
        arrays = [channels_last(inputs[spec.name], layout=self._layout) for spec in self._inputs]
        found = self._library.inference(inputs=arrays)
        return answers(found, self._outputs, of=self._artifact.name)

    def close(self) -> None:
        if self._library is not None:
            self._library.release()
        self._library = None


def answers(
    found: list[NDArray[Any]] | None, specs: tuple[TensorSpec, ...], *, of: str
) -> dict[str, NDArray[Any]]:
    """The library's answers by name, in the datatype and shape of their specs.

    Raises:
        EngineError: it answered nothing, or other tensors than the options say.
    """
    if found is None:
        raise EngineError(f"{of}: the library failed, and printed why")
    if len(found) != len(specs):
        raise EngineError(f"{of}: {len(found)} outputs came, and its options name {len(specs)}")
    named = {}
    for spec, array in zip(specs, found, strict=True):
        try:
            shaped = np.asarray(array).reshape(spec.shape)
        except ValueError as e:
            raise EngineError(
                f"{of}: output {spec.name!r} has shape {list(np.shape(array))}, and its options"
                f" say {list(spec.shape)}"
            ) from e
        named[spec.name] = shaped.astype(DTYPES[spec.datatype], copy=False)
    return named


def _not_installed() -> EngineNotInstalled:
    hint = f"on the board: pip install {PACKAGE}, and Rockchip's librknnrt.so"
    return not_installed("rknn", hint=hint)


ENGINE = Rknn()
