"""Listings: whatever is listed fits the terminal, and nothing of it is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.client import say, show
from edgekit.fleet.listing import paragraph, table
from tests.fleet.processes import edgekit

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


NASTY = "x\x1b]0;owned\x07\x1b[2J\nberlin/b  online  \x9b32mall is well\u202e"


def test_what_a_device_says_neither_steers_the_terminal_nor_forges_a_line() -> None:
    (line,) = table([("berlin/a", NASTY, "offline")], width=100)
    told = paragraph(f"berlin/a: {NASTY}", width=100)

    assert line.isprintable()
    assert len(told) == 1
    assert told[0].isprintable()


def test_what_is_printed_is_plain_and_its_json_the_same_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show({"said": NASTY}, as_json=True, lines=[])
    assert_plain((as_json := capsys.readouterr().out), lines=1)
    assert json.loads(as_json) == {"said": NASTY}

    show({}, as_json=False, lines=["first", NASTY])
    assert_plain(capsys.readouterr().out, lines=3)

    say([NASTY])
    assert_plain(capsys.readouterr().err, lines=2)


def test_an_error_is_printed_plain() -> None:
    told = edgekit("fleet", "devices", "--coordinator", "http://\x1b[2J\x9b1m")

    assert told.returncode != 0
    assert_plain(told.stderr, lines=len(told.stderr.splitlines()))


def assert_plain(text: str, *, lines: int) -> None:
    assert text.endswith("\n")
    found = text[:-1].split("\n")
    assert len(found) == lines
    assert all(line.isprintable() for line in found)
