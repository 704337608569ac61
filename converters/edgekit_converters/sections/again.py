"""Again: how to get the same bundle another time, and its schemes without a search."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import msgspec

from edgekit.recipe import PassSpec, Recipe
from edgekit_converters.report import BundleReport, Details, VariantReport
from edgekit_converters.sections import Section, is_float
from edgekit_converters.sections.markup import block, facts, fold, listed
from edgekit_converters.sections.numbers import count
from edgekit_converters.typed import Typed, shape_text
from edgekit_converters.workshop import Workshop

_DIGESTS = {
    "source": "source model",
    "data": "samples",
    "profile": "profile, resolved",
    "recipe": "recipe",
    "tool-lock": "tool lock",
}


def again(found: BundleReport, details: Details, workshop: Workshop) -> Section:
    """The command, what went into it by digest, and recipes to copy."""
    recipe = workshop.recipe
    typed = details.command or _typed(found, workshop)
    parts = [block(_command(typed))]
    if recipe != Recipe():
        parts.append(fold("The recipe of this build, as a file", block(as_yaml(recipe))))
    for variant in found.variants:
        if not is_float(variant):
            title = f"Recipe of {variant.name} alone, without a search"
            parts.append(fold(title, block(as_yaml(recipe_of(variant, recipe)))))
    parts.append(facts(_facts(found, details)))
    if found.notes:
        parts.append(f"<h3>Notes</h3>{listed(found.notes)}")
    lead = (
        "The same source, samples, recipe, profile and tools give the same artefacts; measured"
        " time may rank near ties anew on another machine."
    )
    return Section("again", "How to reproduce", "".join(parts), lead)


def recipe_of(variant: VariantReport, recipe: Recipe) -> Recipe:
    """The recipe that makes one variant: its steps with all their options."""
    passes = tuple(PassSpec(name=step.name, options=step.options) for step in variant.steps)
    return msgspec.structs.replace(recipe, passes=passes)


def as_yaml(recipe: Recipe) -> str:
    """A recipe as a file that `edgekit build --recipe` takes; what is default is left out."""
    import yaml

    plain = _without_defaults(msgspec.to_builtins(recipe), msgspec.to_builtins(Recipe()))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    return text


def _without_defaults(tree: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        usual = default.get(name)
        if value == usual:
            continue
        if isinstance(value, dict) and isinstance(usual, dict):
            kept[name] = _without_defaults(value, usual)
        else:
            kept[name] = _plain(value)
    return kept


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how YAML writes them."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _command(typed: Typed) -> str:
    first, *rest = typed
    return " \\\n  ".join(shlex.join(piece) for piece in (("edgekit", "build", *first), *rest))


def _typed(found: BundleReport, workshop: Workshop) -> Typed:
    """The command for a build that a program started; it cannot name the samples and the recipe."""
    given = [("--data", "SAMPLES")] if found.data.origin == "given" else []
    given += [("--recipe", "recipe.yaml")] if workshop.recipe != Recipe() else []
    given += [("--input", f"{name}={shape_text(s)}") for name, s in workshop.shapes.items()]
    return (
        (workshop.source.path.name,),
        ("--profile", found.profile),
        *given,
        ("--name", found.name),
        ("--version", found.version),
    )


def _facts(found: BundleReport, details: Details) -> Iterable[tuple[str, str]]:
    data = found.data
    if data.origin == "given":
        samples = (
            f"{data.calibration} calibration, {data.selection} selection, {data.golden} golden and"
            f" {data.evaluation} evaluation samples, from {count(data.groups, 'group')}"
        )
    else:
        samples = f"none given; {data.golden} synthetic golden inputs"
    yield "samples", escape(samples)
    if found.digest is not None:
        yield "bundle", f'<code class="digest">{escape(found.digest)}</code>'
    for name, digest in details.digests.items():
        title = _DIGESTS.get(name, name)
        yield title, f'<code class="digest">sha256:{escape(digest)}</code>'
    yield "tools", escape(", ".join(f"{name} {version}" for name, version in details.tools.items()))
    yield "machine", escape(details.machine)
    yield "build time", f"{found.seconds:.0f} s"
