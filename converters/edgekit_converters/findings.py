"""Findings: what a trial found of a scheme, as the cache keeps it."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from edgekit import tensors
from edgekit.drift.reference import Part
from edgekit.errors import EdgekitError
from edgekit.manifest import Needs
from edgekit.structs import Strict
from edgekit_converters.evaluate import Evaluation
from edgekit_converters.golden_pictures import Slack
from edgekit_converters.measure import Timing
from edgekit_converters.pinned import Rerun
from edgekit_converters.targets import Product
from edgekit_converters.workshop import Arrays


class Record(Strict, frozen=True, kw_only=True):
    """What was found of one scheme.

    Attributes:
        failure: why it could not be made or run; then nothing else is known.
        problems: what the engine is known not to take.
        selection: against the source, on the selection samples; None without them.
        noise: of `noise_of`, on those samples.
        timing, float_timing: side by side; None for a probe, or on another machine.
    """

    failure: str | None = None
    problems: tuple[str, ...] = ()
    size_bytes: int = 0
    needs: Needs = Needs(memory_mb=1)
    operators: dict[str, int] = {}
    selection: Evaluation | None = None
    noise: float | None = None
    timing: Timing | None = None
    float_timing: Timing | None = None


class Proof(Strict, frozen=True, kw_only=True):
    """What was found of an artefact on samples that nothing was chosen by.

    Attributes:
        evaluation: on the evaluation samples; None without them.
        largest_error: on golden and evaluation samples.
        rounding: of `golden.rounding_of`; None for an artefact in float.
        slack: of `golden_pictures.slack`; None where there are none, or nothing is answered.
        answered: how its answers lay on the evaluation samples, for `drift.json`.
    """

    evaluation: Evaluation | None = None
    largest_error: float = 0.0
    rounding: float | None = None
    slack: Slack | None = None
    answered: Part | None = None


def failed(error: EdgekitError) -> Record:
    """The record of a scheme that could not be made or run."""
    return Record(failure=error.with_hint)


def read_record(entry: Path) -> Record:
    """A record from its entry in the cache."""
    return msgspec.json.decode((entry / "record").read_bytes(), type=Record)


def read_proof(entry: Path) -> tuple[Proof, Arrays]:
    """A proof, and the golden answers beside it, from their entry in the cache."""
    golden = tensors.decode((entry / "golden").read_bytes(), what="cache")
    return msgspec.json.decode((entry / "proof").read_bytes(), type=Proof), golden


def read_rerun(entry: Path) -> Rerun:
    """What a rerun showed, from its entry in the cache."""
    return msgspec.json.decode((entry / "rerun").read_bytes(), type=Rerun)


def read_timings(entry: Path) -> dict[str, Timing]:
    """Timings by name from their entry in the cache."""
    return msgspec.json.decode((entry / "timings").read_bytes(), type=dict[str, Timing])


def product_files(product: Product) -> dict[str, bytes | Path]:
    """The files of an entry in the cache that `read_product` makes a product of again."""
    files: dict[str, bytes | Path] = {
        "product": msgspec.json.encode(product, enc_hook=str),
        "artefact": product.path,
    }
    return files if product.stand_in is None else {**files, "stand-in": product.stand_in}


def read_product(entry: Path, stem: Path) -> Product:
    """A product from its entry in the cache, its files copied beside `stem`."""
    raw = (entry / "product").read_bytes()
    kept = msgspec.json.decode(raw, type=Product, dec_hook=lambda kind, text: kind(text))
    path = stem.with_name(f"{stem.name}{kept.path.suffix}")
    shutil.copyfile(entry / "artefact", path)
    stand_in = None
    if kept.stand_in is not None:
        stand_in = stem.with_name(f"{stem.name}-stand-in{kept.stand_in.suffix}")
        shutil.copyfile(entry / "stand-in", stand_in)
    return msgspec.structs.replace(kept, path=path, stand_in=stand_in)
