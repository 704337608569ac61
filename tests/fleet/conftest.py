"""Fixtures of the fleet's tests: keys, bundles, one broker and coordinator for each module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit import signing
from edgekit.signing import SigningKey
from tests import bundles
from tests.fleet.processes import Fleet


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key pair that the coordinator trusts."""
    folder = tmp_path_factory.mktemp("keys")
    signing.new_pair(folder)
    return folder


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Fleet]:
    """A running broker and coordinator."""
    running = Fleet(tmp_path_factory.mktemp("fleet"), trust=keys / signing.PUBLIC_FILE)
    yield running
    running.close()


@pytest.fixture
def write_bundle(keys: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle of `tiny` that the coordinator trusts, by version."""
    key = SigningKey.read(keys / signing.KEY_FILE)

    def write(version: str, *, name: str = "tiny", seed: int = 0) -> Path:
        return bundles.write(tmp_path, name=name, version=version, key=key, seed=seed)

    return write
