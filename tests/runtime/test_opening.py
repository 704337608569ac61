"""Unpacked bundles: what one start serves from, no other start removes."""

from __future__ import annotations

from pathlib import Path

from edgekit.signing import SigningKey
from edgekit_runtime.opening import open_trusted
from tests import bundles


def test_one_bundle_signed_by_two_keys_is_served_by_two_starts_side_by_side(
    tmp_path: Path,
) -> None:
    opened = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        key = SigningKey.generate()
        path = bundles.write(tmp_path / name, key=key)
        opened.append(
            open_trusted(path, trusted=[key.public], insecure=False, cache=tmp_path / "cache")
        )

    first, second = (found.bundle for found in opened)
    assert first.digest == second.digest
    assert first.path != second.path
    for bundle in (first, second):
        assert all((bundle.path / name).is_file() for name in bundle.names())
        bundle.close()


def test_a_second_start_takes_what_the_first_unpacked(tmp_path: Path) -> None:
    key = SigningKey.generate()
    path = bundles.write(tmp_path, key=key)
    folders = []
    for _ in range(2):
        found = open_trusted(path, trusted=[key.public], insecure=False, cache=tmp_path / "cache")
        folders.append(found.bundle.path)
        found.bundle.close()

    assert folders[0] == folders[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1
