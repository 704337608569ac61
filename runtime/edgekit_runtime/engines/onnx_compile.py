"""What execution providers of onnxruntime compile on the device: context models, engine caches.

QNN and OpenVINO write a context model, an ONNX file whose nodes hold what was compiled; it is
opened instead of the artefact. TensorRT keeps engines in a folder beside the artefact, because its
context models hold only graphs that it takes as a whole.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import EngineError
from edgekit_runtime.engines import hardware
from edgekit_runtime.engines.compiling import Compilation, Usable
from edgekit_runtime.engines.library import installed

TENSORRT = "TensorrtExecutionProvider"
CONTEXTS = ("QNNExecutionProvider", "OpenVINOExecutionProvider")

# Libraries whose version a provider's output depends on, where they have a record.
_LIBRARIES = ("onnxruntime-qnn", "onnxruntime-openvino", "tensorrt")
_CONTEXT = "context.onnx"
# The field op_type of a node, as protobuf has it: tag 4, nine bytes of text.
_CONTEXT_NODE = b"\x22\x09EPContext"

Open = Callable[[Path, Mapping[str, Any], Mapping[str, str]], None]
"""Opens an artefact with options and session entries, and closes it again."""


class ContextModel:
    """A context model in the place of the artefact."""

    def __init__(self, artifact: Path, options: Mapping[str, Any], open_once: Open) -> None:
        self._artifact, self._options, self._open = artifact, dict(options), open_once
        self.holds_for = holds_for()

    def compile(self, folder: Path) -> None:
        made = folder / _CONTEXT
        entries = {
            "ep.context_enable": "1",
            "ep.context_embed_mode": "1",
            "ep.context_file_path": str(made),
        }
        self._open(self._artifact, self._options, entries)
        if not made.is_file():
            raise EngineError(f"{self._artifact.name}: no provider took a node to compile")

    def usable(self, folder: Path) -> Usable:
        return Usable(folder / _CONTEXT, self._options)


class EngineCache:
    """TensorRT's engines in a folder of their own. Never run: no machine here has a GPU."""

    def __init__(self, artifact: Path, options: Mapping[str, Any], open_once: Open) -> None:
        self._artifact, self._options, self._open = artifact, dict(options), open_once
        self.holds_for = holds_for()

    def compile(self, folder: Path) -> None:
        self._open(self._artifact, self._with_cache(folder), {})

    def usable(self, folder: Path) -> Usable:
        return Usable(self._artifact, self._with_cache(folder))

    def _with_cache(self, folder: Path) -> dict[str, Any]:
        kept = {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(folder),
        }
        providers = [
            {**p, "options": {**p.get("options", {}), **kept}} if p["name"] == TENSORRT else p
            for p in self._options["providers"]
        ]
        return {**self._options, "providers": providers}


def compilation(
    artifact: Path, options: Mapping[str, Any], *, providers: tuple[str, ...], open_once: Open
) -> Compilation | None:
    """What the first provider that compiles makes; None where none does, or it is made already."""
    if TENSORRT in providers:
        return EngineCache(artifact, options, open_once)
    if any(name in CONTEXTS for name in providers) and not holds_context(artifact):
        return ContextModel(artifact, options, open_once)
    return None


def holds_context(artifact: Path) -> bool:
    """Whether an ONNX file holds what a provider compiled.

    Raises:
        EngineError: it cannot be read, or is empty.
    """
    try:
        with artifact.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as raw:
            return raw.find(_CONTEXT_NODE) >= 0
    except (OSError, ValueError) as e:
        raise EngineError(f"onnxruntime cannot open {artifact}: {e}") from e


def holds_for() -> dict[str, str]:
    """This device, its drivers, and the versions of providers' libraries."""
    versions = {library: installed(library) for library in _LIBRARIES}
    here = {library: version for library, version in versions.items() if version is not None}
    return hardware.identity() | here
