"""Opening a bundle to run it: check it, decide whether it is trusted, and unpack it where it stays.

What is checked is what runs: the unpacked copy is opened and verified again, so that a file that
was changed between the two, or since an earlier start, is never given to an engine.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit import storage
from edgekit.bundle import Bundle
from edgekit.errors import BundleError, StorageError, UntrustedError
from edgekit.signing import PublicKey

log = logging.getLogger(__name__)


class Opened(msgspec.Struct, frozen=True):
    """A bundle in a folder, ready for engines.

    Attributes:
        bundle: open; its files must stay while a session uses them.
        verified_by: id of the trusted key that signed it, `None` where it runs `--insecure`.
    """

    bundle: Bundle
    verified_by: str | None


def open_trusted(
    path: Path, *, trusted: Sequence[PublicKey], insecure: bool, cache: Path
) -> Opened:
    """Open a `.edge` file, unpacked below `cache`, or a folder that is unpacked already.

    Args:
        path: the bundle.
        trusted: keys that may have signed it.
        insecure: runs it without a trusted signature, too.
        cache: where unpacked bundles stay, by digest and signature.

    Raises:
        BundleError: it is damaged.
        UntrustedError: no trusted key signed it, and `insecure` was not asked for.
        StorageError: it cannot be unpacked.
    """
    if path.is_dir():
        return _verified(Bundle.open(path), trusted=trusted, insecure=insecure)
    with Bundle.open(path) as packed:
        trust(packed, trusted=trusted, insecure=insecure)
        folder = cache / _identity(packed)
        opened = _reopen(folder, trusted=trusted, insecure=insecure)
        if opened is not None:
            return opened
        storage.make_folder(folder.parent)
        try:
            packed.unpack(folder)
        except StorageError:
            # Another start may have put the same bundle there in the meantime.
            opened = _reopen(folder, trusted=trusted, insecure=insecure)
            if opened is None:
                raise
            return opened
    return _verified(Bundle.open(folder), trusted=trusted, insecure=insecure)


def _identity(bundle: Bundle) -> str:
    """The name of a bundle's folder.

    Two files of one digest may be signed by different keys. Each has a folder of its own, so that
    no start removes what another one, which trusts the other key, is serving from.
    """
    signature = b"" if bundle.signature is None else bundle.signature.sig
    return hashlib.sha256(bundle.digest.encode() + signature).hexdigest()


def trust(bundle: Bundle, *, trusted: Sequence[PublicKey], insecure: bool) -> str | None:
    """Id of the trusted key that signed, `None` where none did and `insecure` lets it pass."""
    try:
        return bundle.verify(trusted).id
    except UntrustedError as e:
        if not insecure:
            raise
        log.info("no trusted signature", extra={"bundle": str(bundle.path), "reason": e.message})
        return None


def _reopen(folder: Path, *, trusted: Sequence[PublicKey], insecure: bool) -> Opened | None:
    """What an earlier start unpacked, if it is whole and may run; else it is removed."""
    if not folder.is_dir():
        return None
    try:
        return _verified(Bundle.open(folder), trusted=trusted, insecure=insecure)
    except BundleError as e:
        log.warning("unpacked again", extra={"folder": str(folder), "reason": e.message})
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _verified(bundle: Bundle, *, trusted: Sequence[PublicKey], insecure: bool) -> Opened:
    try:
        return Opened(bundle, trust(bundle, trusted=trusted, insecure=insecure))
    except BaseException:
        bundle.close()
        raise


def run_cache() -> Path:
    """Where `edgekit run` keeps unpacked bundles."""
    return storage.cache_home() / "run"
