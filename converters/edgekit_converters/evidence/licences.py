"""Licences: SPDX where it is clear which one is meant, a name where it is not.

What the user says of the model and the data must be an SPDX expression. What a distribution says of
itself comes in many spellings: an expression is taken at its word, a spelling of one licence is
that licence, and the rest keeps its own words ("BSD License" is one of several).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

import msgspec
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.spdx import fixup_id, is_expression

from edgekit.errors import RecipeError
from edgekit.recipe import Licences

_OWN = re.compile(r"\b(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
_SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license v2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}
_SAYS_NOTHING = frozenset({"", "unknown", "osi approved"})


def check(licences: Licences) -> None:
    """Raise `RecipeError` for a licence of a recipe that is no SPDX expression."""
    for field, text in msgspec.structs.asdict(licences).items():
        if text is not None and _spdx(text) is None:
            raise RecipeError(
                f"recipe, licences.{field}: {text!r} is not an SPDX licence expression",
                hint="such as Apache-2.0, CC-BY-4.0 or LicenseRef-NAME for one of your own;"
                " spdx.org/licenses lists them",
            )


def of_text(text: str | None) -> list[License]:
    """The licence that a checked recipe names; none where it names none."""
    found = None if text is None else _spdx(text)
    return [] if found is None else [found]


def of_distribution(name: str) -> list[License]:
    """What an installed distribution says of itself; none where it says nothing."""
    said = [text for text in _said(metadata.metadata(name)) if text.lower() not in _SAYS_NOTHING]
    for text in said:
        if (found := _spdx(_SPELLINGS.get(text.lower(), text))) is not None:
            return [found]
    # The last word is a classifier's, where there is one: the others may be the licence's text.
    return [DisjunctiveLicense(name=said[-1])] if said else []


def _said(about: metadata.PackageMetadata) -> Iterator[str]:
    for field in ("License-Expression", "License"):
        if field in about:
            yield about[field].strip().partition("\n")[0].strip()
    for classifier in about.get_all("Classifier") or ():
        kind, *_, last = classifier.split(" :: ")
        if kind == "License":
            yield last


def _spdx(text: str) -> License | None:
    if (known := fixup_id(text)) is not None:
        return DisjunctiveLicense(id=known)
    # A reference to a licence of one's own may stand wherever the name of a listed one does.
    if text and is_expression(_OWN.sub("MIT", text)):
        return LicenseExpression(text)
    return None
