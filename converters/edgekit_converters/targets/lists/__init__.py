"""Lists: which ONNX operators accelerators take, one YAML file each, with its source and version.

A file is read strictly, so that a misspelt field or condition is an error and not a rule that never
holds. Its fields are those of `Rules`; `targets.coverage` reads graphs against them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgekit import documents
from edgekit.errors import UsageError
from edgekit.structs import Strict

Way = Literal["refused", "fallback"]
Positive = Annotated[int, msgspec.Meta(gt=0)]
_FOLDER = Path(__file__).parent


class Bounds(Strict, frozen=True, kw_only=True):
    """What an attribute may be; each of its values where it has several.

    Attributes:
        values: the only values allowed.
        min, max: bounds of each value, included.
        max_product: bound of all its values multiplied.
        equal: whether all its values must be the same.
    """

    values: tuple[int | float | str, ...] | None = None
    min: float | None = None
    max: float | None = None
    max_product: float | None = None
    equal: bool = False


class Conditions(Strict, frozen=True, kw_only=True):
    """When one operator is taken; what is left out is no condition.

    Attributes:
        ranks: of the first input.
        types: of the first input, as `float32`.
        constant: inputs, by position, whose values must be in the file.
        attributes: bounds by name of the attribute; defaults of the operator count.
        scales: sizes of the output over those of the first input, on every axis.
        reads, makes: how many inputs and outputs it may have at most.
        instead: what to do where a condition is not met.
    """

    ranks: tuple[int, ...] | None = None
    types: tuple[str, ...] | None = None
    constant: tuple[int, ...] = ()
    attributes: dict[str, Bounds] = {}
    scales: tuple[int, ...] | None = None
    reads: Positive | None = None
    makes: Positive | None = None
    instead: str = ""


class Rules(Strict, frozen=True, kw_only=True):
    """What one accelerator takes, by one version of its tools.

    Attributes:
        title: what messages call the accelerator.
        version: of the tool or document that the list was read from.
        sources: where it was read, and by which operators of a tool ONNX's are judged.
        otherwise: what becomes of a node that is not taken: the CPU runs it, or nothing is made.
        dynamic: what becomes of a node whose shapes are known only when it runs. Inputs with open
            axes beside the batch are refused where such nodes are.
        max_rank, max_axis, max_tensor_bytes: of any tensor that a node reads or makes, constants
            aside.
        max_inner_rank: how many axes, the innermost of the channels-last layout, may be longer
            than 1.
        one_part: whether only one part of the graph, from its inputs on, is compiled: what depends
            on a node that is not taken is not taken either.
        activation_bits: what one value of an activation takes on the accelerator.
        types: element types of tensors that nodes read or make; None for all.
        operators: by ONNX name (`domain.Name` where it is not standard).
        refused: operators of which nothing can be made, with the reason.
        never: operators that are not taken, with a reason better than "not in the list".
        instead: what to do about an operator that is not taken.
    """

    title: str
    version: str
    sources: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    otherwise: Way
    dynamic: Literal["refused", "fallback", "taken"]
    operators: dict[str, Conditions]
    max_rank: Positive | None = None
    max_axis: Positive | None = None
    max_inner_rank: Positive | None = None
    one_part: bool = False
    max_tensor_bytes: Positive | None = None
    activation_bits: Positive = 32
    types: tuple[str, ...] | None = None
    refused: dict[str, str] = {}
    never: dict[str, str] = {}
    instead: dict[str, str] = {}

    def without(self, *operators: str) -> Rules:
        """These rules for a part that lacks some operators."""
        kept = {name: rule for name, rule in self.operators.items() if name not in operators}
        return msgspec.structs.replace(self, operators=kept)


def names() -> list[str]:
    """Every list there is, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


@cache
def rules_of(name: str) -> Rules:
    """The rules in `lists/NAME.yaml`.

    Raises:
        UsageError: there is no such list, or a field of it is wrong or unknown.
    """
    return read(_FOLDER / f"{name}.yaml")


def read(path: Path) -> Rules:
    """The rules in one file, raising `UsageError` that names the wrong field."""
    tree = documents.read(path, what="operator list", error=UsageError)
    try:
        return msgspec.convert(tree, Rules)
    except msgspec.ValidationError as e:
        raise UsageError(f"operator list {path} is not valid: {e}") from e
