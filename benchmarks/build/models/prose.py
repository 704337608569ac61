"""News articles in English: 300 short ones of the corpus that Lee, Pincombe and Welsh collected.

The package gensim carries it as test data. It was published with "An empirical evaluation of models
of text document similarity" (Lee, Pincombe and Welsh, CogSci 2005).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.build.models.packages import pypi

SOURCE = "gensim 4.4.0 (LGPL-2.1): 300 news articles of the Lee corpus"
_PACKAGE = "gensim==4.4.0"
_FILE = "gensim/test/test_data/lee_background.cor"


def articles(cache: Path) -> list[str]:
    """The articles, one string each, in the order of the file."""
    text = (pypi(cache, _PACKAGE) / _FILE).read_text("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
