"""Listings: whatever is listed fits the terminal, and nothing of it is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.listing import paragraph, table

words = st.text("abcxyz019-/.:", min_size=1, max_size=24)
texts = st.lists(words, max_size=30).map(" ".join)
rows = st.lists(st.tuples(words, words, texts), max_size=6)


@given(rows, st.integers(60, 120))
def test_no_line_of_a_table_is_wider_than_the_terminal(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    lines = table(rows, width=width)

    assert all(len(line) <= width for line in lines)
    said = " ".join(lines).split()
    assert said == [word for row in rows for cell in row for word in cell.split()]


@given(texts, st.integers(40, 120))
def test_no_line_of_a_paragraph_is_wider_than_the_terminal(text: str, width: int) -> None:
    lines = paragraph(text, indent="  ", width=width)

    assert all(len(line) <= width for line in lines)
    assert " ".join(lines).split() == text.split()


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    found = table([("berlin/a", "online", "x"), ("berlin/gate-10", "offline", "")], width=100)

    assert found == ["berlin/a        online   x", "berlin/gate-10  offline"]


def test_what_does_not_fit_beside_the_columns_goes_below() -> None:
    token = "f" * 81

    assert table([("berlin/a-rather-long-name", token)], width=100) == [
        "berlin/a-rather-long-name",
        f"    {token}",
    ]
