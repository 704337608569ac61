"""Lint: what in a device profile cannot be true, or promises what no build can keep.

Reading a profile checks its form: `msgspec` refuses what the JSON Schema refuses, as both come from
the same type. The rules here are about what fields say together; each names its field.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from edgekit import profile as profiles
from edgekit.errors import ProfileError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit.structs import Strict
from edgekit_converters.engine_facts import (
    PLACES,
    PRECISIONS,
    READS_ONNX,
    REQUIRED_OPTIONS,
    has_wheel,
    numbers,
)
from edgekit_converters.yaml_lines import Place, lines_of, place_of, text_of

LEAST_PYTHON = (3, 10)
# The idle daemon takes 60 MB at most, an engine with numpy some 70, a small Linux about as much.
LEAST_MEMORY_MB = 256
HOSTS = frozenset({"x86_64", "aarch64"})


class Problem(Strict, frozen=True, kw_only=True):
    """What is wrong, and where.

    Attributes:
        field: the field, such as `engines[0].version`; empty where it is the file.
        line: in the file, counted from 1; None where the field comes from what it extends.
    """

    field: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.field}{': ' if self.field else ''}{self.message}"


Found = tuple[Place, str]


def lint_file(path: Path, *, today: dt.date) -> tuple[Problem, ...]:
    """Problems of a profile's file, by line; empty where there is none."""
    try:
        tree = profiles.merged(path)
        profile = profiles.resolve(str(path), tree)
    except ProfileError as e:
        return (_unreadable(e, path),)
    stated = "min_accelerator_macs" in (tree.get("placement") or {})
    found = lint(profile, file_stem=path.stem, today=today, floor_stated=stated)
    return _located(found, path)


def lint(
    profile: DeviceProfile, *, file_stem: str, today: dt.date, floor_stated: bool = True
) -> tuple[Found, ...]:
    """What is wrong with a resolved profile: the place of each field, and why.

    Args:
        file_stem: name of its file without suffix, which must be its own name.
        today: no check can have been later.
        floor_stated: whether its file, or one that it extends, gives the floor of placement.
    """
    return (
        *_identity(profile, file_stem),
        *_daemon(profile),
        *_placement(profile, floor_stated),
        *(found for i, engine in enumerate(profile.engines) for found in _engine(i, engine)),
        *_engines_together(profile),
        *_quality(profile, today),
    )


def _identity(profile: DeviceProfile, file_stem: str) -> Iterator[Found]:
    if profile.name != file_stem:
        yield ("name",), f"is {profile.name!r}, the file is called {file_stem!r}"
    for field in ("power_modes", "notes"):
        values = getattr(profile, field)
        if len(set(values)) != len(values):
            yield (field,), "says something twice"


def _daemon(profile: DeviceProfile) -> Iterator[Found]:
    """Where the daemon runs, and whether it can."""
    runtime, python = profile.runtime, profile.python
    hosted = runtime != "artefact-only"
    if hosted and profile.architecture not in HOSTS:
        yield ("runtime",), f"is {runtime}, and {profile.architecture} only takes the artefact"
    if runtime == "container" and profile.container is None:
        yield ("runtime",), "is container: which image? give container.image and container.python"
    if runtime != "container" and profile.container is not None:
        yield ("container",), f"is given, and runtime is {runtime}"
    if runtime == "artefact-only" and python is not None:
        yield ("python",), "is given, and an artefact-only board runs no daemon"
    if runtime == "native" and python is None:
        yield ("runtime",), "is native: on which Python? give python"
    if runtime == "native" and python is not None and numbers(python) < LEAST_PYTHON:
        yield ("python",), f"is {python}, a native daemon needs 3.10: runtime is container"
    if profile.container is not None and numbers(profile.container.python) < LEAST_PYTHON:
        yield ("container", "python"), f"is {profile.container.python}, the daemon needs 3.10"
    if hosted and profile.memory_mb is not None and profile.memory_mb < LEAST_MEMORY_MB:
        yield (
            ("memory_mb",),
            f"is {profile.memory_mb}, a system with the daemon needs {LEAST_MEMORY_MB}:"
            " runtime is artefact-only",
        )


def _placement(profile: DeviceProfile, floor_stated: bool) -> Iterator[Found]:
    accelerators = sorted({engine.accelerator for engine in profile.engines} - {"cpu"})
    if not accelerators:
        return
    which = " and ".join(accelerators)
    if not floor_stated:
        yield (
            ("placement",),
            f"there is an engine on the {which}: give min_accelerator_macs, the least share of MACs"
            " there",
        )
    elif profile.placement.min_accelerator_macs == 0:
        yield (
            ("placement", "min_accelerator_macs"),
            f"is 0: a model that runs on the CPU alone would count as one on the {which}",
        )


def _engine(position: int, engine: EngineSpec) -> Iterator[Found]:
    at: Place = ("engines", position)
    facts = PLACES[engine.name].get(engine.accelerator)
    if facts is None:
        known = _list(PLACES[engine.name])
        yield (
            (*at, "accelerator"),
            f"{engine.name} is not known on a {engine.accelerator}; known: {known}",
        )
        return
    for precision in engine.precisions:
        if precision not in PRECISIONS:
            yield (*at, "precisions"), f"{precision!r} is unknown; known: {_list(PRECISIONS)}"
        elif precision not in facts.precisions:
            yield (
                (*at, "precisions"),
                f"{engine.name} on a {engine.accelerator} does not take {precision!r}; it takes"
                f" {_list(facts.precisions)}",
            )
    yield from _providers(at, engine, known=facts.providers)
    if engine.name in READS_ONNX:
        yield from _versions(at, engine)


def _providers(at: Place, engine: EngineSpec, *, known: frozenset[str]) -> Iterator[Found]:
    if engine.accelerator != "cpu" and not engine.providers:
        yield (*at, "providers"), f"is empty: what brings it onto the {engine.accelerator}?"
    for i, provider in enumerate(engine.providers):
        if provider.name not in known:
            yield (
                (*at, "providers", i, "name"),
                f"{provider.name!r} is not known for {engine.name} on a {engine.accelerator};"
                f" known: {_list(known) or 'none'}",
            )
        missing = REQUIRED_OPTIONS.get(provider.name, frozenset()) - provider.options.keys()
        if missing:
            yield (*at, "providers", i), f"{provider.name} needs the options {_list(missing)}"


def _versions(at: Place, engine: EngineSpec) -> Iterator[Found]:
    from onnx import helper

    opset = helper.make_opsetid("", engine.max_opset)
    try:
        needed = helper.find_min_ir_version_for([opset])
    except ValueError:
        yield (*at, "max_opset"), f"there is no opset {engine.max_opset}"
        return
    if needed > engine.max_onnx_ir:
        yield (
            (*at, "max_opset"),
            f"opset {engine.max_opset} needs IR {needed}, max_onnx_ir is {engine.max_onnx_ir}",
        )


def _engines_together(profile: DeviceProfile) -> Iterator[Found]:
    python, seen = profile.daemon_python, set()
    for i, engine in enumerate(profile.engines):
        at: Place = ("engines", i)
        if (engine.name, engine.accelerator) in seen:
            yield at, f"{engine.name} on {engine.accelerator} comes twice"
        seen.add((engine.name, engine.accelerator))
        first = next(other for other in profile.engines if other.name == engine.name)
        if first.version != engine.version:
            yield (
                (*at, "version"),
                f"is {engine.version}, and {first.version} for the {first.accelerator}: one Python"
                f" holds one {engine.name}",
            )
        if engine.name == "tflite-micro" and profile.architecture != "cortex-m":
            yield (
                (*at, "name"),
                f"tflite-micro is for cortex-m, the board is {profile.architecture}",
            )
        if profile.cores is not None and engine.threads > profile.cores:
            yield (*at, "threads"), f"is {engine.threads}, the board has {profile.cores} cores"
        from_pypi = engine.wheels.startswith("PyPI")
        if from_pypi and python is None:
            yield (*at, "wheels"), "says PyPI, and no Python runs there"
        elif from_pypi and not has_wheel(
            engine, python=python or "", architecture=profile.architecture
        ):
            yield (
                (*at, "version"),
                f"PyPI has no {engine.name} {engine.version} for Python {python} on"
                f" {profile.architecture} ({engine.accelerator})",
            )


def _quality(profile: DeviceProfile, today: dt.date) -> Iterator[Found]:
    quality = profile.quality
    try:
        if dt.date.fromisoformat(quality.checked) > today:
            yield ("quality", "checked"), f"{quality.checked} is in the future"
    except ValueError:
        yield ("quality", "checked"), f"{quality.checked!r} is no date"
    if quality.evidence != "executed" and not quality.unverified:
        yield (
            ("quality", "unverified"),
            f"is empty, and evidence is {quality.evidence}, so something was not run: what?",
        )
    if not quality.verified:
        yield ("quality", "verified"), f"is empty: what shows that it is {quality.evidence}?"
    for i, source in enumerate(quality.sources):
        if not source.startswith("https://"):
            yield ("quality", "sources", i), f"{source!r} is no https address"


def _unreadable(error: ProfileError, path: Path) -> Problem:
    if not isinstance(error.__cause__, msgspec.ValidationError):
        return Problem(field="", message=error.message)
    message, place = place_of(str(error.__cause__))
    return Problem(field=text_of(place), message=message, line=_line(place, _lines(path)))


def _located(found: Iterable[Found], path: Path) -> tuple[Problem, ...]:
    lines = _lines(path)
    return tuple(
        Problem(field=text_of(place), message=message, line=_line(place, lines))
        for place, message in found
    )


def _lines(path: Path) -> dict[Place, int]:
    return lines_of(path.read_text("utf-8"))


def _line(place: Place, lines: dict[Place, int]) -> int | None:
    """The line of a field, or of the nearest field around it that stands in the file."""
    return next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
