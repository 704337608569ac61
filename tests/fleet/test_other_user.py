"""A fleet's folder in the hands of a user who may not read all of it: which file it is, is said."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.cli import cli
from edgekit.errors import ConfigError, StorageError
from edgekit.fleet.address import Address
from edgekit.fleet.broker import Broker
from edgekit.fleet.tuf import publish, signers
from tests.runtime.hostile_repository import SignedFleet

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user can look into, which pytest's own are not."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextmanager
def unreadable(*folders: Path) -> Iterator[None]:
    """The user that runs this may not look into these."""
    if os.geteuid() == 0:
        # Root reads everything, so somebody else goes on.
        for one in folders:
            one.chmod(0o700)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
        return
    for one in folders:
        one.chmod(0o000)
    try:
        yield
    finally:
        for one in folders:
            one.chmod(0o700)


def test_a_key_that_may_not_be_read_is_named(folder: Path) -> None:
    signed = SignedFleet.make(folder)
    fleet, bundle = signed.fleet, str(signed.bundle("1.0.0"))
    arguments = ["publish", bundle, "--fleet", str(fleet.path)]
    assert callable(publish.publish)  # what the command imports is there before the user changes

    with unreadable(fleet.release):
        told = CliRunner().invoke(cli, arguments)

    assert isinstance(told.exception, ConfigError)
    assert f"private key {fleet.release_key} cannot be read: Permission denied" in str(
        told.exception
    )
    assert "as the user" in str(told.exception.hint)
    with unreadable(fleet.offline), pytest.raises(ConfigError, match="cannot be read"):
        signers.present(fleet.targets_key)


def test_a_broker_that_may_not_read_a_file_of_the_fleet_names_it(folder: Path) -> None:
    fleet = SignedFleet.make(folder).fleet
    fleet.broker.mkdir()
    with (
        unreadable(fleet.broker),
        pytest.raises(StorageError, match=r"needs .*/broker/nats-users.conf, .*Permission denied"),
    ):
        Broker(listen=Address("127.0.0.1", 0), state=folder / "state", fleet=fleet)
    with pytest.raises(StorageError, match=r"nats-users.conf, .*No such file"):
        Broker(listen=Address("127.0.0.1", 0), state=folder / "state", fleet=fleet)
