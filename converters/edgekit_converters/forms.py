"""Forms: the normal forms of one source, each made once.

Engines differ in the newest opset and format version that they read, so a source has a normal form
for each pair of such caps. Another build finds them in the cache; this one keeps the one that it is
working with, as each is as large as the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import onnx

from edgekit.manifest import TensorSpec
from edgekit.recipe import Recipe
from edgekit_converters.cache import Cache, code_digest, key_of
from edgekit_converters.normalise import Normalised, normalise, opset_of, serialise
from edgekit_converters.source import OnnxSource


class Forms:
    """Normal forms of a source.

    Args:
        source: as read.
        recipe: fixes inputs, and says whether the model is to be trained.
        tools: versions of what has a hand in the forms.
        cache: what earlier builds worked out.
    """

    def __init__(
        self, source: OnnxSource, *, recipe: Recipe, tools: Mapping[str, str], cache: Cache
    ) -> None:
        self._source = source
        self._recipe = recipe
        self._tools = tools
        self._cache = cache
        self._kept: tuple[str, Normalised] | None = None

    def own(self, shapes: Mapping[str, tuple[int, ...]]) -> Normalised:
        """The form that keeps the source's own opset and format version where they are normal."""
        model = self._source.model
        return self.capped(shapes, max_opset=opset_of(model), max_ir=model.ir_version)

    def capped(
        self, shapes: Mapping[str, tuple[int, ...]], *, max_opset: int, max_ir: int
    ) -> Normalised:
        """The form that an engine takes.

        Args:
            shapes: of inputs that are fixed.

        Raises:
            ModelError: there is none; see `normalise`.
        """
        # A round sends weights back under the names they have here.
        fold = self._recipe.training is None
        constants = self._recipe.constants
        facts = (self._source.sha256, shapes, constants, max_opset, max_ir, fold)
        key = key_of(code_digest(), self._tools, *facts)
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        self._kept = None
        form = self._cache.recall("normal", key, _read)
        if form is None:
            form = normalise(
                self._source.model,
                shapes=shapes,
                max_opset=max_opset,
                max_ir=max_ir,
                constants=constants,
                fold=fold,
            )
            self._cache.put("normal", key, _files(form))
        self._kept = key, form
        return form


class _Facts(msgspec.Struct, frozen=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


def _files(form: Normalised) -> dict[str, bytes | Path]:
    facts = _Facts(inputs=form.inputs, outputs=form.outputs, notes=form.notes)
    return {"model.onnx": serialise(form.model), "facts.json": msgspec.json.encode(facts)}


def _read(entry: Path) -> Normalised:
    facts = msgspec.json.decode((entry / "facts.json").read_bytes(), type=_Facts)
    return Normalised(
        model=onnx.load_model(entry / "model.onnx"),
        inputs=facts.inputs,
        outputs=facts.outputs,
        notes=facts.notes,
    )
