"""Page: the report of a build as one HTML file that needs nothing else.

It says the same as `report.json` and `measurements.json`, top down: the verdict and its headline
figures, accuracy against latency, what was tried, the variants, how answers changed, where the
model runs, and how to get the same again. No script, no font, no address outside; every text is
escaped, and the page stays small however much was tried.
"""

from __future__ import annotations

from html import escape

from edgekit_converters.page_style import STYLE
from edgekit_converters.report import BundleReport, Details
from edgekit_converters.sections import Section
from edgekit_converters.sections.again import again
from edgekit_converters.sections.answers import answers
from edgekit_converters.sections.blocks import blocks
from edgekit_converters.sections.ladder import ladder
from edgekit_converters.sections.placement import placement
from edgekit_converters.sections.tradeoff import tradeoff
from edgekit_converters.sections.tried import tried
from edgekit_converters.sections.verdict import verdict
from edgekit_converters.sections.worst import worst
from edgekit_converters.workshop import Workshop


def render(found: BundleReport, details: Details, *, workshop: Workshop) -> bytes:
    """The page for one bundle, which has at least one variant."""
    title = f"{found.name} {found.version} for {found.profile}"
    sections = [
        section
        for section in (
            tradeoff(found, workshop),
            tried(found),
            blocks(found, details),
            ladder(found, details, workshop),
            answers(found, details, workshop),
            worst(found, details, workshop),
            placement(found, details),
            again(found, details, workshop),
        )
        if section is not None
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"{verdict(found)}{_contents(sections)}{''.join(map(_section, sections))}"
        "</main></body></html>\n"
    ).encode()


def _contents(sections: list[Section]) -> str:
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections)
    return f"<nav>{links}</nav>"


def _section(section: Section) -> str:
    lead = f"<p>{escape(section.lead)}</p>" if section.lead else ""
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{lead}{section.body}'
        "</section>"
    )
