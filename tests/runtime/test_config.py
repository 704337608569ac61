"""The daemon's configuration: what is wrong is named, what is left out has a default."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import ConfigError
from edgekit_runtime import config

DEVICE = '[device]\nsite = "demo"\nid = "board-1"\nprofile = "generic-x86_64"\n'
FLEET = '[fleet]\nbroker = "mqtt://127.0.0.1:1883"\nrepository = "http://127.0.0.1:8600/r/"\n'


def read(text: str) -> config.Config:
    return config.decode(text.encode(), what="device.toml")


def test_a_board_without_a_fleet_needs_only_its_name() -> None:
    found = read(DEVICE)

    assert found.fleet is None
    assert found.training is None
    assert found.serve.listen == "127.0.0.1:8500"
    assert found.state.folder == Path("/var/lib/edgekit")
    assert found.trust.keys == ()


def test_every_section_is_read() -> None:
    found = read(
        DEVICE
        + '[state]\nfolder = "/s"\n[serve]\nlisten = ""\nunix = "/run/e.sock"\n'
        + '[trust]\nkeys = ["/k.pub"]\n[update]\nconfirm_after_s = 5\n'
        + FLEET
        + '[training]\ndata = "/d.npz"\nmodels = ["digits"]\nmax_seconds = 20\n'
    )

    assert found.fleet is not None
    assert found.training is not None
    assert found.serve.unix == Path("/run/e.sock")
    assert found.trust.keys == (Path("/k.pub"),)
    assert found.update.confirm_after_s == 5
    assert found.training.models == ("digits",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (DEVICE + "[serve]\nlisten_on = 1\n", r"device.toml: .*listen_on.*\$\.serve"),
        (DEVICE + "[colour]\n", "colour"),
        (DEVICE.replace("board-1", "Board 1"), r"\$\.device\.id"),
        (DEVICE.replace("board-1", "rounds"), "rounds"),
        (DEVICE + '[serve]\nlisten = ""\n', "nothing could be served"),
        (DEVICE + '[trust]\nkeys = [""]\n', r"\$\.trust\.keys"),
        (DEVICE + FLEET.replace("mqtt:", "http:"), "broker"),
        (DEVICE + FLEET.replace("http:", "ftp:"), "repository"),
        (DEVICE + FLEET.replace("/r/", "/r"), "must end in /"),
        (DEVICE + '[training]\ndata = "/d"\nmodels = ["m"]\n', r"\[training\] needs \[fleet\]"),
        (DEVICE + FLEET + '[training]\ndata = "/d"\nmodels = []\n', r"\$\.training\.models"),
        ("[device\n", "not TOML"),
        ("", "device"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        config.read(tmp_path / "nowhere.toml")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_configuration_are_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError, match=r"device\.toml"):
        config.decode(raw, what="device.toml")
