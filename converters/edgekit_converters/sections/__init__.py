"""Sections of a report, one file a question that a reader has; `page` joins them.

Every section is made by one function from a `BundleReport`, its `Details` and the workshop, and is
None where it has nothing to say. What was not obtained is called so, never drawn as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit_converters.report import BundleReport, VariantReport


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: its anchor.
        title, lead: plain text.
        body: markup.
    """

    name: str
    title: str
    body: str
    lead: str = ""


def is_float(variant: VariantReport) -> bool:
    """Whether no pass changed the model."""
    return not variant.steps


def float_parent(found: BundleReport, variant: VariantReport) -> VariantReport | None:
    """The float model of a variant's engine, where it ships."""
    same = (v for v in found.variants if v.engine == variant.engine and is_float(v))
    return next((v for v in same if v.accelerator == variant.accelerator), None)


def style_of(variant: VariantReport) -> str:
    """The CSS class of a variant's marks."""
    return "float" if is_float(variant) else "ship" if variant.proven else "open"
