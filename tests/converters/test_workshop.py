"""What a workshop shares between profiles and builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.recipe import Recipe
from edgekit_converters import source
from edgekit_converters.cache import Cache
from edgekit_converters.workshop import Workshop
from tests.converters.building import write_model


def workshop(folder: Path, *, build: int) -> Workshop:
    scratch = folder / f"scratch{build}"
    scratch.mkdir()
    return Workshop(
        source.read(write_model(folder)),
        recipe=Recipe(),
        shapes={},
        data=None,
        scratch=scratch,
        cache=Cache(folder / "cache"),
    )


def fill(folder: Path) -> None:
    (folder / "a").write_text("one")
    (folder / "b").write_text("two")


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_shared_folder_is_filled_once_for_a_build_and_the_next(tmp_path: Path) -> None:
    first, made = workshop(tmp_path, build=1), []

    def make(folder: Path) -> None:
        made.append(folder)
        fill(folder)

    one = first.shared("kind", {"fact": 1}, make)
    again = first.shared("kind", {"fact": 1}, make)
    later = workshop(tmp_path, build=2).shared("kind", {"fact": 1}, make)
    other = first.shared("kind", {"fact": 2}, make)

    assert one == again != other
    assert contents(one) == contents(later) == {"a": "one", "b": "two"}
    assert len(made) == 2


def test_an_entry_that_goes_while_it_is_copied_is_made_again(tmp_path: Path) -> None:
    workshop(tmp_path, build=1).shared("kind", {}, fill)
    (entry,) = (tmp_path / "cache" / "kind").iterdir()
    # What cannot be copied any more: a link whose target is gone.
    (entry / "b").unlink()
    (entry / "b").symlink_to(entry / "gone")

    found = workshop(tmp_path, build=2).shared("kind", {}, fill)

    assert contents(found) == {"a": "one", "b": "two"}


def test_what_was_half_made_is_not_taken_for_whole(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "a").write_text("one")
        raise OSError("the disk is full")

    first = workshop(tmp_path, build=1)
    with pytest.raises(OSError, match="full"):
        first.shared("kind", {}, half)

    assert contents(first.shared("kind", {}, fill)) == {"a": "one", "b": "two"}
