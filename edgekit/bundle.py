"""Bundle: one signed model for one board, as a file or as an unpacked folder.

Opening checks the container, the manifest and every digest; nothing of a bundle is used before.
Trust is a second question that `verify` answers: a bundle can be whole and still be a stranger's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from edgekit import container, manifest, signing, storage, tensors
from edgekit.errors import (
    BundleError,
    IntegrityError,
    MessageError,
    StorageError,
    UntrustedError,
)
from edgekit.manifest import Artifact, Manifest, Variant
from edgekit.signing import PublicKey, SigningKey
from edgekit.tensors import Arrays

MANIFEST = container.FIRST
SIGNATURE = signing.ENTRY
REPORTS = "reports/"
GOLDEN_INPUTS = "golden/inputs.safetensors"
GOLDEN_REFERENCE = "golden/reference.safetensors"
_CHUNK = 1 << 20


class Source(Protocol):
    """Where the bytes of entries come from: a file, or a folder it was unpacked to."""

    def sizes(self) -> dict[str, int]: ...
    def view(self, name: str) -> memoryview: ...
    def path(self, name: str) -> Path | None: ...
    def close(self) -> None: ...


class Bundle:
    """An open bundle. Its entries match the manifest and, where it is signed, the signature."""

    def __init__(self, path: Path, source: Source) -> None:
        self.path = path
        self._source = source
        sizes = source.sizes()
        if MANIFEST not in sizes:
            raise BundleError(f"there is no {MANIFEST}: this is not a bundle")
        raw = self._bytes(MANIFEST, limit=manifest.MAX_MANIFEST_BYTES)
        self.manifest: Manifest = manifest.decode(raw)
        self.digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self._check_names(sizes)
        self._digests = {name: self._sha256(name) for name in sizes if name != SIGNATURE}
        for name, entry in self.manifest.entries.items():
            if sizes[name] != entry.size_bytes or self._digests[name] != entry.sha256:
                raise IntegrityError(f"{name}: sha256 or size differs from the manifest")
        self.signature: signing.Signature | None = None
        if SIGNATURE in sizes:
            signature = self._bytes(SIGNATURE, limit=manifest.MAX_JSON_BYTES)
            self.signature = signing.decode(signature)
            self.signature.check(self._digests)

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open a `.edge` file or an unpacked folder and check every byte of it.

        Raises:
            BundleError: the container breaks a rule of the format.
            ManifestError: the manifest has a wrong or unknown field.
            IntegrityError: an entry differs from its sha256; the message names it.
        """
        try:
            source: Source = Folder(path) if path.is_dir() else File(path)
            try:
                return cls(path, source)
            except BaseException:
                source.close()
                raise
        except BundleError as e:
            raise type(e)(f"{path}: {e}", hint=e.hint) from e

    def verify(self, trusted: Sequence[PublicKey]) -> PublicKey:
        """The trusted key that signed, raising `UntrustedError` where there is none."""
        if self.signature is None:
            raise UntrustedError(
                f"{self.path} is not signed", hint="build it again with --key, or use --insecure"
            )
        return self.signature.signer(trusted)

    def names(self) -> list[str]:
        """Every entry, in the order of the container."""
        return container.order(self._source.sizes())

    def read(self, name: str) -> bytes:
        """The bytes of a small entry (JSON, reports); at most 16 MiB."""
        return self._bytes(name, limit=manifest.MAX_JSON_BYTES)

    def tensors(self, name: str) -> Arrays:
        """The arrays of a safetensors entry, raising `BundleError` where it is not one."""
        self._require(name)
        try:
            return tensors.decode(bytes(self._source.view(name)), what=name)
        except MessageError as e:
            raise BundleError(f"{self.path}: {e}") from e

    def artifact(self, variant: Variant) -> Path:
        """The file of a variant's artefact, for an engine. Only an unpacked bundle has one."""
        path = self._source.path(variant.artifact)
        if path is None:
            raise BundleError(f"{self.path} must be unpacked before an engine can open it")
        return path

    def unpack(self, folder: Path) -> Path:
        """Write every entry below `folder`, which appears whole or not at all."""
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            for name in self.names():
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.write(self._source.view(name))
                    file.flush()
                    os.fsync(file.fileno())
            for parent, _, _ in os.walk(temporary):
                storage.sync_folder(Path(parent))
            os.rename(temporary, folder)
            storage.sync_folder(folder.parent)
        except OSError as e:
            raise StorageError(
                f"{self.path} cannot be unpacked to {folder}: {e.strerror}",
                hint="check free space and permissions, and that nothing stands there",
            ) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def close(self) -> None:
        """Give the map back. Views handed out before must not be used any more."""
        self._source.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_names(self, sizes: Mapping[str, int]) -> None:
        listed = set(self.manifest.entries)
        there = {n for n in sizes if n not in (MANIFEST, SIGNATURE) and not n.startswith(REPORTS)}
        if missing := sorted(listed - there):
            raise IntegrityError(f"{missing[0]} is in the manifest, but not in the bundle")
        if extra := sorted(there - listed):
            raise IntegrityError(f"{extra[0]} is in the bundle, but not in the manifest")

    def _require(self, name: str) -> None:
        if name not in self._source.sizes():
            raise BundleError(f"{self.path} has no entry {name}")

    def _bytes(self, name: str, *, limit: int) -> bytes:
        self._require(name)
        view = self._source.view(name)
        if len(view) > limit:
            raise BundleError(f"{name} has {len(view)} bytes, at most {limit} are allowed")
        return bytes(view)

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        view = self._source.view(name)
        for start in range(0, len(view), _CHUNK):
            digest.update(view[start : start + _CHUNK])
        return digest.hexdigest()


class File:
    """Entries of a `.edge` file, through one map."""

    def __init__(self, path: Path) -> None:
        self._map = container.open_map(path)
        try:
            self._entries = container.read(self._map)
            for entry in self._entries.values():
                container.check_crc(self._map, entry)
        except BundleError:
            self._map.close()
            raise
        self._views: list[memoryview] = []

    def sizes(self) -> dict[str, int]:
        return {name: entry.size for name, entry in self._entries.items()}

    def view(self, name: str) -> memoryview:
        entry = self._entries[name]
        view = memoryview(self._map)[entry.offset : entry.offset + entry.size]
        self._views.append(view)
        return view

    def path(self, name: str) -> None:  # noqa: ARG002 - the interface's argument
        return None

    def close(self) -> None:
        for view in self._views:
            view.release()
        self._map.close()


class Folder:
    """Entries of an unpacked bundle, under the limits of a file. A link is refused."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[str, int] = {}
        if not (path / MANIFEST).exists():
            raise BundleError(f"this folder is not a bundle: it has no {MANIFEST}")
        for file in path.rglob("*"):
            try:
                status = file.lstat()
            except OSError as e:
                raise BundleError(f"{file} cannot be read: {e.strerror}") from e
            if stat.S_ISDIR(status.st_mode):
                continue
            if len(self._sizes) == container.MAX_ENTRIES:
                raise BundleError(f"the folder holds more than {container.MAX_ENTRIES} files")
            name = file.relative_to(path).as_posix()
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{name!r} is not a plain file")
            if status.st_size > container.MAX_ENTRY_BYTES:
                raise BundleError(f"{name!r} is larger than {container.MAX_ENTRY_BYTES} bytes")
            self._sizes[name] = status.st_size
        container.check_names(self._sizes)

    def sizes(self) -> dict[str, int]:
        return self._sizes

    def view(self, name: str) -> memoryview:
        if self._sizes[name] == 0:
            return memoryview(b"")
        try:
            # The view alone holds the map: one kept for each entry would use up the descriptors.
            return memoryview(container.open_map(self._path / name))
        except BundleError as e:
            raise BundleError(f"{name}: {e}") from e

    def path(self, name: str) -> Path:
        return self._path / name

    def close(self) -> None:
        """Nothing stays open between two views."""


def write(
    path: Path,
    content: Manifest,
    *,
    entries: Mapping[str, bytes | Path],
    reports: Mapping[str, bytes],
    key: SigningKey,
) -> str:
    """Write a signed bundle at `path`, whole or not at all, and return its digest.

    Args:
        path: where the `.edge` file goes.
        content: the manifest without `entries`; they are filled in from what is given.
        entries: entry name to bytes or file, of everything that the digest covers.
        reports: entry name below `reports/` to bytes; signed, outside the digest.
        key: who signs.
    """
    for name in reports:
        if not name.startswith(REPORTS):
            raise BundleError(f"report {name!r} must lie below {REPORTS}")
    for name in entries:
        if name in (MANIFEST, SIGNATURE) or name.startswith(REPORTS):
            raise BundleError(f"{name!r} cannot be listed in the manifest")
    artifacts = {name: describe(source) for name, source in entries.items()}
    raw = manifest.encode(manifest.complete(content, artifacts))
    manifest.decode(raw)  # nobody could read what the reader refuses: a NaN, a limit, a name
    digests = {name: artifact.sha256 for name, artifact in artifacts.items()}
    for name, data in {MANIFEST: raw, **reports}.items():
        digests[name] = hashlib.sha256(data).hexdigest()
    title = f"{content.name}-{content.version}-{content.profile.name}"
    signature = signing.sign(title, digests, key)
    container.save(path, {MANIFEST: raw, **entries, **reports, SIGNATURE: signature})
    return f"sha256:{digests[MANIFEST]}"


def describe(source: bytes | Path) -> Artifact:
    """Digest and size of bytes or of a file, raising `StorageError` for one not to be read."""
    if isinstance(source, bytes):
        return Artifact(sha256=hashlib.sha256(source).hexdigest(), size_bytes=len(source))
    digest = hashlib.sha256()
    size_bytes = 0
    for chunk in storage.chunks(source):
        digest.update(chunk)
        size_bytes += len(chunk)
    return Artifact(sha256=digest.hexdigest(), size_bytes=size_bytes)
