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
    parts = [block(_command(found, workshop))]
    if recipe != Recipe():
        parts.append(fold("recipe.yaml, as this build was given it", block(as_yaml(recipe))))
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


def _command(found: BundleReport, workshop: Workshop) -> str:
    source = workshop.source.path.name
    parts = [f"edgekit build {shlex.quote(source)}", f"--profile {found.profile}"]
    if found.data.origin == "given":
        parts.append("--data SAMPLES")
    if workshop.recipe != Recipe():
        parts.append("--recipe recipe.yaml")
    for name, shape in workshop.shapes.items():
        sizes = "x".join("?" if size == -1 else str(size) for size in shape)
        parts.append(f"--input {shlex.quote(f'{name}={sizes}')}")
    parts += [f"--name {found.name}", f"--version {found.version}"]
    return " \\\n  ".join(parts)


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
