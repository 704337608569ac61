"""Real models of several families, each carried by a registry package, with real data for each.

One module a model; this table is their order in every report.
"""

from __future__ import annotations

from benchmarks.build.models import (
    lite0,
    magika,
    minilm,
    nudenet,
    ocr_lines,
    ocr_pages,
    ocr_turns,
    open_nsfw,
    silero,
    wake_word,
)
from benchmarks.build.models.entry import Model

MODELS: tuple[Model, ...] = (
    lite0.MODEL,
    open_nsfw.MODEL,
    nudenet.MODEL,
    ocr_pages.MODEL,
    ocr_turns.MODEL,
    ocr_lines.MODEL,
    minilm.MODEL,
    silero.MODEL,
    wake_word.MODEL,
    magika.MODEL,
)
"""The models, by family; their names are unique."""

__all__ = ["MODELS", "Model"]
