"""A second writer and reader of bundles, made from docs/bundle.md alone.

It imports nothing of edgekit: zipfile, struct, json and hashlib are what a stranger has. Each
function follows one section of that page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SIGNATURE = "signature.sigstore.json"


def canonical(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def in_order(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (name != "manifest.json", name))


def container(entries: dict[str, bytes]) -> bytes:
    """The container, byte for byte as the page says it."""
    body, directory = b"", b""
    for name in in_order(list(entries)):
        data, raw = entries[name], name.encode("ascii")
        crc, size, start = zlib.crc32(data), len(data), len(body)
        zeros = -(start + 30 + len(raw) + 6) % 4096
        extra = struct.pack("<HHH", 0xD935, 2 + zeros, 4096) + bytes(zeros)
        local = (b"PK\x03\x04", 10, 0, 0, 0, 0x21, crc, size, size, len(raw), len(extra))
        body += struct.pack("<4sHHHHHIIIHH", *local) + raw + extra + data
        central = (b"PK\x01\x02", 0x031E, 10, 0, 0, 0, 0x21, crc, size, size, len(raw))
        rest = (0, 0, 0, 0, 0o100644 << 16, start)
        directory += struct.pack("<4sHHHHHHIIIHHHHHII", *central, *rest) + raw
    count = len(entries)
    end = (b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + struct.pack("<4sHHHHIIH", *end)


def container_by_zipfile(path: Path, entries: dict[str, bytes]) -> None:
    """The same content by way of Python's zipfile: other free fields, as valid."""
    with zipfile.ZipFile(path, "w") as file:
        for name in in_order(list(entries)):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            zeros = -(file.fp.tell() + 30 + len(name) + 6) % 4096  # type: ignore[union-attr]
            info.extra = struct.pack("<HHH", 0xD935, 2 + zeros, 4096) + bytes(zeros)
            file.writestr(info, entries[name])
            info.extra = b""


def statement(title: str, entries: dict[str, bytes]) -> dict[str, Any]:
    names = sorted(name for name in entries if name != SIGNATURE)
    digests = {name: hashlib.sha256(entries[name]) for name in names}
    root = hashlib.sha256(b"".join(digests[name].digest() for name in names))
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": title, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digests[name].hexdigest()}
                for name in names
            ],
        },
    }


def envelope(payload: bytes, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    kind = "application/vnd.in-toto+json"
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    sig = key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(pem).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind,
            "signatures": [{"sig": base64.b64encode(sig).decode(), "keyid": ""}],
        },
    }


def sign(title: str, entries: dict[str, bytes], key: ec.EllipticCurvePrivateKey) -> bytes:
    return canonical(envelope(canonical(statement(title, entries)), key))


def read(raw: bytes) -> dict[str, bytes]:
    """Every entry, by following local headers from the first byte on."""
    entries: dict[str, bytes] = {}
    position = 0
    while raw[position : position + 4] == b"PK\x03\x04":
        fields = struct.unpack_from("<4sHHHHHIIIHH", raw, position)
        crc, size, name_length, extra_length = fields[6], fields[8], fields[9], fields[10]
        name = raw[position + 30 : position + 30 + name_length].decode("ascii")
        start = position + 30 + name_length + extra_length
        assert start % 4096 == 0
        entries[name] = raw[start : start + size]
        assert zlib.crc32(entries[name]) == crc
        position = start + size
    return entries


def verify(entries: dict[str, bytes], public: ec.EllipticCurvePublicKey) -> None:
    """Check manifest and signature; raises where something differs."""
    manifest = json.loads(entries["manifest.json"])
    free = {"manifest.json", SIGNATURE}
    covered = {name for name in entries if name not in free and not name.startswith("reports/")}
    assert covered == set(manifest["entries"])
    for name, entry in manifest["entries"].items():
        assert len(entries[name]) == entry["size_bytes"]
        assert hashlib.sha256(entries[name]).hexdigest() == entry["sha256"]
    signed = json.loads(entries[SIGNATURE])["dsseEnvelope"]
    payload = base64.b64decode(signed["payload"])
    kind = signed["payloadType"]
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    sig = base64.b64decode(signed["signatures"][0]["sig"])
    public.verify(sig, message, ec.ECDSA(hashes.SHA256()))
    said = json.loads(payload)
    assert said == statement(said["subject"][0]["name"], entries)
