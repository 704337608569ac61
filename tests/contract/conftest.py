"""What several tests of the contract start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.signing import SigningKey
from tests.contract import samples


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def edge(tmp_path: Path, key: SigningKey) -> Path:
    """The sample bundle as a file."""
    return samples.write(tmp_path / "tiny.edge", key)


@pytest.fixture
def folder(tmp_path: Path, edge: Path) -> Path:
    """The sample bundle, unpacked."""
    with Bundle.open(edge) as bundle:
        return bundle.unpack(tmp_path / "unpacked")
