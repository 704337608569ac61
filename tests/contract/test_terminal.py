"""Terminal: what others said is printed, and does nothing."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from edgekit.terminal import plain, plain_json, plain_lines

# A title, a cleared screen, a C1 control, a turned direction of writing, a forged line.
NASTY = "\x1b]0;owned\x07\x1b[2J\x9b1m\u202edone\r\n\u2028ok"
texts = st.text() | st.text("\x1b\x07\x9b\u202e\u2028\t\n[2Ja ")


@given(texts)
@example(NASTY)
def test_nothing_that_is_not_printable_is_left_in_a_line(text: str) -> None:
    found = plain(text)

    assert found.isprintable()
    assert len(found) == len(text)
    assert [new for new, old in zip(found, text, strict=True) if old.isprintable()] == [
        old for old in text if old.isprintable()
    ]


@given(texts)
def test_lines_stay_lines(text: str) -> None:
    assert plain_lines(text).split("\n") == [plain(line) for line in text.split("\n")]


@given(st.recursive(texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)))
@example({"detail": NASTY, "beyond": "\U000e0001"})
def test_json_stays_the_same_document(document: object) -> None:
    line = plain_json(json.dumps(document, ensure_ascii=False))

    assert line.isprintable()
    assert json.loads(line) == document
