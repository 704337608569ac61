"""Both directions between edgekit and a writer and reader made from docs/bundle.md alone."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edgekit import container, manifest
from edgekit.bundle import MANIFEST, SIGNATURE, Bundle
from edgekit.errors import BundleError, IntegrityError, UntrustedError
from edgekit.signing import SigningKey
from tests.contract import samples, stranger

PAGE = Path(__file__).parents[2] / "docs/bundle.md"


@pytest.fixture
def private(key: SigningKey) -> ec.EllipticCurvePrivateKey:
    loaded = load_pem_private_key(key.pem(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return loaded


@pytest.fixture
def entries(edge: Path, private: ec.EllipticCurvePrivateKey) -> dict[str, bytes]:
    """What a stranger puts into a bundle: their own manifest, fields with defaults left out."""
    files = {name: data for name, data in samples.ENTRIES.items() if isinstance(data, bytes)}
    described = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for name, data in files.items()
    }
    profile = {
        "name": "their-board",
        "title": "A board with an ü",
        "architecture": "aarch64",
        "engines": [{"name": "litert", "version": "2.3"}],
        "quality": {"evidence": "linted", "checked": "2026-11-01", "sources": ["a data sheet"]},
    }
    content = {
        "format": 1,
        "name": "theirs",
        "version": "2.0.0-rc.1",
        "profile": profile,
        "model": {
            "source_sha256": "cd" * 32,
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
        },
        "variants": [
            {
                "name": "float",
                "artifact": samples.ARTIFACT,
                "engine": "litert",
                "accelerator": "cpu",
                "precision": "fp32",
                "needs": {"memory_mb": 4},
                "placement": {"min_accelerator_macs": 1.0},
                "golden": {"reference_atol": 1e-05},
            }
        ],
        "entries": described,
    }
    whole = {MANIFEST: stranger.canonical(content), "reports/report.json": b"{}", **files}
    return {**whole, SIGNATURE: stranger.sign("theirs", whole, private)}


def test_the_example_on_the_page_is_what_we_write() -> None:
    file = io.BytesIO()
    container.write(file, {MANIFEST: b"{}"})
    raw = file.getvalue()

    seen = 0
    for line in PAGE.read_text("utf-8").splitlines():
        if match := re.match(r"([0-9a-f]{8})  ((?:[0-9a-f]{2} ?){1,16})(?: |$)", line):
            shown = bytes.fromhex(match[2])
            start = int(match[1], 16)
            assert raw[start : start + len(shown)] == shown
            seen += len(shown)
    assert f"{len(raw)} bytes" in PAGE.read_text("utf-8")
    assert seen == 64 + len(raw) - 4096


def test_a_stranger_reads_and_verifies_our_bundle(
    edge: Path, private: ec.EllipticCurvePrivateKey
) -> None:
    theirs = stranger.read(edge.read_bytes())

    with Bundle.open(edge) as ours:
        assert theirs == {name: ours.read(name) for name in ours.names()}
    stranger.verify(theirs, private.public_key())


def test_a_stranger_refuses_our_bundle_with_a_changed_report(
    edge: Path, private: ec.EllipticCurvePrivateKey
) -> None:
    theirs = stranger.read(edge.read_bytes())
    with pytest.raises(AssertionError):
        stranger.verify({**theirs, "reports/report.json": b"{}"}, private.public_key())
    with pytest.raises(InvalidSignature):
        stranger.verify(theirs, ec.generate_private_key(ec.SECP256R1()).public_key())


def test_a_stranger_writes_the_very_bytes_that_we_write(
    edge: Path, private: ec.EllipticCurvePrivateKey
) -> None:
    raw = edge.read_bytes()
    theirs = stranger.read(raw)
    tree = json.loads(theirs[MANIFEST])
    theirs[SIGNATURE] = stranger.sign("tiny-1.2.0-sample", theirs, private)
    # The form of a number is each writer's own: Python says 1e-06 where ours says 1e-6.
    tree["variants"][0]["golden"]["reference_atol"] = 0.5
    ours = theirs[MANIFEST].replace(b"1e-6", b"0.5")

    assert stranger.canonical(tree) == ours
    assert stranger.container(theirs) == raw


def test_we_read_a_strangers_bundle(
    tmp_path: Path, entries: dict[str, bytes], key: SigningKey
) -> None:
    path = tmp_path / "any name at all.edge"
    path.write_bytes(stranger.container(entries))

    with Bundle.open(path) as opened:
        opened.verify([key.public])
        assert opened.manifest.profile.title == "A board with an ü"
        assert opened.manifest.variants[0].golden.reference_atol == 1e-05


def test_we_read_a_strangers_bundle_made_with_zipfile(
    tmp_path: Path, entries: dict[str, bytes], key: SigningKey
) -> None:
    path = tmp_path / "zipfile.edge"
    stranger.container_by_zipfile(path, entries)

    with Bundle.open(path) as opened:
        opened.verify([key.public])
        assert opened.read("reports/report.json") == b"{}"


Tree = dict[str, Any]


def _predicate(field: str, value: object) -> Callable[[Tree], None]:
    def change(statement: Tree) -> None:
        statement["predicate"]["serialization"][field] = value

    return change


def _first(field: str, value: object) -> Callable[[Tree], None]:
    def change(statement: Tree) -> None:
        statement["predicate"]["resources"][0][field] = value

    return change


def _swap(statement: Tree) -> None:
    resources = statement["predicate"]["resources"]
    resources[0], resources[1] = resources[1], resources[0]


def _drop(statement: Tree) -> None:
    del statement["predicate"]["resources"][0]


def _repeat(statement: Tree) -> None:
    statement["predicate"]["resources"].append(statement["predicate"]["resources"][-1])


@pytest.mark.parametrize(
    "change",
    [
        _predicate("ignore_paths", []),
        _predicate("ignore_paths", [SIGNATURE, ".git"]),
        _predicate("ignore_paths", [SIGNATURE, "artifacts"]),
        _predicate("method", "shards"),
        _predicate("hash_type", "blake2b"),
        _predicate("allow_symlinks", True),
        _predicate("more", 1),
        _first("algorithm", "sha512"),
        _first("name", "../x"),
        _first("digest", "AB" * 32),
        _first("digest", "ab" * 32),
        _first("digest", 1),
        _first("more", 1),
        _swap,
        _drop,
        _repeat,
        lambda statement: statement["subject"].append(statement["subject"][0]),
        lambda statement: statement["subject"][0].update(name=["x"]),
        lambda statement: statement["subject"][0].update(digest={"sha256": "ab" * 32}),
        lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda statement: statement.update(more=1),
        lambda statement: statement.pop("predicate"),
    ],
)
def test_a_statement_of_another_form_is_refused_though_it_is_signed(
    tmp_path: Path,
    entries: dict[str, bytes],
    private: ec.EllipticCurvePrivateKey,
    change: Callable[[Tree], object],
) -> None:
    statement = stranger.statement("theirs", entries)
    change(statement)
    signed = stranger.envelope(stranger.canonical(statement), private)
    path = tmp_path / "x.edge"
    path.write_bytes(stranger.container({**entries, SIGNATURE: stranger.canonical(signed)}))

    with pytest.raises(IntegrityError):
        Bundle.open(path)


def _envelope(field: str, value: object) -> Callable[[Tree], None]:
    def change(signed: Tree) -> None:
        signed["dsseEnvelope"][field] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _envelope("payloadType", "text/plain"),
        _envelope("payload", "not base64!"),
        _envelope("payload", base64.b64encode(b"\xff").decode()),
        _envelope("payload", base64.b64encode(b"[]").decode()),
        _envelope("payload", base64.b64encode(b"[" * 100).decode()),
        _envelope("signatures", []),
        _envelope("more", 1),
        lambda signed: signed["dsseEnvelope"]["signatures"].append({"sig": "AAAA"}),
        lambda signed: signed["dsseEnvelope"]["signatures"][0].update(sig="é"),
        lambda signed: signed.update(mediaType="application/json"),
        lambda signed: signed.update(more=1),
        lambda signed: signed["verificationMaterial"].update(tlogEntries=[{}]),
        lambda signed: signed["verificationMaterial"]["publicKey"].update(hint=""),
        lambda signed: signed["verificationMaterial"].update(x509CertificateChain={}),
    ],
)
def test_a_signature_file_of_another_form_is_refused(
    tmp_path: Path,
    entries: dict[str, bytes],
    change: Callable[[Tree], object],
) -> None:
    signed = json.loads(entries[SIGNATURE])
    change(signed)
    path = tmp_path / "x.edge"
    path.write_bytes(stranger.container({**entries, SIGNATURE: stranger.canonical(signed)}))

    with pytest.raises(IntegrityError, match="signature"):
        Bundle.open(path)


def test_a_signature_file_with_a_key_twice_is_refused(
    tmp_path: Path, entries: dict[str, bytes]
) -> None:
    twice = entries[SIGNATURE].replace(b"{", b'{"mediaType":"x",', 1)
    path = tmp_path / "x.edge"
    path.write_bytes(stranger.container({**entries, SIGNATURE: twice}))

    with pytest.raises(IntegrityError, match="twice"):
        Bundle.open(path)


def test_a_signature_that_names_another_key_is_refused(
    tmp_path: Path, entries: dict[str, bytes], key: SigningKey
) -> None:
    signed = json.loads(entries[SIGNATURE])
    signed["verificationMaterial"]["publicKey"]["hint"] = "ab" * 32
    path = tmp_path / "x.edge"
    path.write_bytes(stranger.container({**entries, SIGNATURE: stranger.canonical(signed)}))

    with Bundle.open(path) as opened, pytest.raises(IntegrityError, match="another key"):
        opened.verify([key.public])


def test_a_signature_with_bytes_that_are_none_is_refused(
    tmp_path: Path, entries: dict[str, bytes], key: SigningKey
) -> None:
    signed = json.loads(entries[SIGNATURE])
    signed["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    path = tmp_path / "x.edge"
    path.write_bytes(stranger.container({**entries, SIGNATURE: stranger.canonical(signed)}))

    with Bundle.open(path) as opened, pytest.raises(UntrustedError):
        opened.verify([key.public])


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b'{"entries"', b'{ "entries"', "not canonical"),
        (b'"format":1,', b'"format":1,"format":1,', "not canonical"),
        (b'"format":1,', b"", "missing required field `format`"),
        (b'"theirs"', b'"\\u0074heirs"', "not canonical"),
        (b'"a data sheet"', b'"a data\\/sheet"', "not canonical"),
        (b"\xc3\xbc", b"\\u00fc", "not canonical"),
        (b"\xc3\xbc", b"\xff", "not valid"),
        (b"\xc3\xbc", b"\\ud800", "not valid"),
        (b'"format":1', b'"format":2', "format 2, this edgekit reads 1"),
        (b'"format":1', b'"format":"1"', "format '1'"),
        (b'"format":1', b'"format":true', "format"),
        (b'"format":1', b'"format":1,"from":1', "unknown field `from`"),
        (b'"memory_mb":4', b'"memory_mb":4,"more":1', r"unknown field `more`.*needs"),
        (b'"memory_mb":4', b'"memory_mb":-4', "memory_mb"),
        (b"1e-05", b"NaN", "not valid"),
        (b"1e-05", b"Infinity", "not valid"),
        (b"1e-05", b"1e999", "not valid"),
        (b"2.0.0-rc.1", b"2.0", "version"),
        (b'"theirs"', b'"The Irs"', "name"),
        (b'"shape":[-1,1]', b'"shape":[-2,1]', "shape"),
        (b"artifacts/float.onnx", b"../../artifacts.onnx", "entries"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(
    entries: dict[str, bytes], old: bytes, new: bytes, match: str
) -> None:
    raw = entries[MANIFEST]
    assert old in raw

    with pytest.raises(BundleError, match=match):
        manifest.decode(raw.replace(old, new))


@pytest.mark.parametrize("number", [b"1e-5", b"0.00001", b"1E-05", b"10.0e-6"])
def test_the_form_of_a_number_is_free(entries: dict[str, bytes], number: bytes) -> None:
    read = manifest.decode(entries[MANIFEST].replace(b"1e-05", number))

    assert read.variants[0].golden.reference_atol == 1e-05
