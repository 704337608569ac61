"""Keys: where they come from, who may read them, and which are refused."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgekit import signing, storage
from edgekit.errors import ConfigError, StorageError
from edgekit.signing import PublicKey, SigningKey


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "edgekit"


def test_a_new_pair_is_private_and_fits(tmp_path: Path) -> None:
    private, public = signing.new_pair(tmp_path / "keys")

    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert SigningKey.read(private).public.id == PublicKey.read(public).id


def test_a_new_pair_never_replaces_a_key(tmp_path: Path) -> None:
    private, public = signing.new_pair(tmp_path)
    before = private.read_bytes()

    with pytest.raises(StorageError, match="is there already"):
        signing.new_pair(tmp_path)
    private.unlink()
    with pytest.raises(StorageError, match=r"edgekit\.pub is there already"):
        signing.new_pair(tmp_path)

    assert not private.exists()
    private.write_bytes(before)
    assert public.exists()


def test_a_pair_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match="cannot be made"):
        signing.new_pair(tmp_path / "file/keys")


def test_signatures_are_deterministic_and_others_differ() -> None:
    one, two = SigningKey.generate(), SigningKey.generate()

    assert one.sign(b"text") == one.sign(b"text")
    assert one.public.verify(one.sign(b"text"), b"text")
    assert not one.public.verify(one.sign(b"text"), b"texts")
    assert not two.public.verify(one.sign(b"text"), b"text")
    assert not one.public.verify(b"", b"text")


def test_the_first_call_makes_a_pair_and_trusts_it_here(home: Path) -> None:
    assert signing.trusted_keys() == []

    key = signing.own_key()

    assert signing.own_key().public.id == key.public.id
    assert [trusted.id for trusted in signing.trusted_keys()] == [key.public.id]
    assert stat.S_IMODE((home / "keys/edgekit.key").stat().st_mode) == 0o600


def test_trust_that_a_person_took_back_stays_away(home: Path) -> None:
    signing.own_key()
    (home / "trust.d/edgekit.pub").unlink()

    signing.own_key()

    assert signing.trusted_keys() == []


def test_a_first_call_that_was_cut_short_is_finished_by_the_next(home: Path) -> None:
    storage.make_folder(home / "keys")
    key = SigningKey.generate()
    storage.write(home / "keys/edgekit.key", key.pem(), mode=0o600)

    assert signing.own_key().public.id == key.public.id
    assert [trusted.id for trusted in signing.trusted_keys()] == [key.public.id]


def test_first_calls_at_the_same_time_end_in_one_pair(home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        ids = {key.public.id for key in pool.map(lambda _: signing.own_key(), range(4))}

    assert len(ids) == 1
    assert {trusted.id for trusted in signing.trusted_keys()} == ids
    assert PublicKey.read(home / "keys/edgekit.pub").id in ids


def test_more_keys_are_trusted_when_named(home: Path, tmp_path: Path) -> None:
    _, public = signing.new_pair(tmp_path / "other")
    mine = signing.own_key()

    ids = [key.id for key in signing.trusted_keys([public])]

    assert ids == [mine.public.id, PublicKey.read(public).id]
    assert home.exists()


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    private, _ = signing.new_pair(tmp_path)
    private.chmod(0o640)

    with pytest.raises(ConfigError, match="can be read by others") as caught:
        SigningKey.read(private)

    assert caught.value.hint == f"chmod 600 {private}"


def test_a_key_file_that_is_missing_or_none_is_named(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"-----BEGIN nothing")
    nothing.chmod(0o600)
    for read, what in ((SigningKey.read, "private key"), (PublicKey.read, "public key")):
        with pytest.raises(ConfigError, match=f"{what} .*missing cannot be read"):
            read(tmp_path / "missing")
        with pytest.raises(ConfigError, match=f"nothing is not an? .*{what} in PEM"):
            read(nothing)


@pytest.mark.parametrize(
    "private", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())]
)
def test_a_key_of_another_kind_is_refused(
    tmp_path: Path, private: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    storage.write(
        tmp_path / "a.key",
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
        mode=0o600,
    )
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    storage.write(tmp_path / "a.pub", private.public_key().public_bytes(pem, info))

    with pytest.raises(ConfigError, match="not a P-256 key"):
        SigningKey.read(tmp_path / "a.key")
    with pytest.raises(ConfigError, match="not a P-256 key"):
        PublicKey.read(tmp_path / "a.pub")


def test_an_encrypted_private_key_is_refused(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    raw = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    storage.write(tmp_path / "a.key", raw, mode=0o600)

    with pytest.raises(ConfigError, match="not an unencrypted private key"):
        SigningKey.read(tmp_path / "a.key")
