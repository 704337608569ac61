"""Files that are whole or absent: write beside the target, fsync, rename, fsync the folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgekit.errors import StorageError


class FileExists(StorageError):
    """Something stands where a new file was to go."""


@contextmanager
def replacing(path: Path, *, mode: int = 0o644, exclusive: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends well.

    The folder is made where it is missing. Raises `StorageError` where the disk is full or the
    folder cannot be written; the temporary file is gone then, and what stood at `path` still
    stands.

    Args:
        path: the file to make or to replace.
        mode: its permissions, less the umask.
        exclusive: refuse with `FileExists` to replace a file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    make_folder(path.parent)
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if exclusive:
                os.link(temporary, path)
            else:
                os.rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError as e:
        raise FileExists(f"{path} is there already", hint="name another place") from e
    except OSError as e:
        raise StorageError(
            f"{path} cannot be written: {e.strerror}", hint="check free space and permissions"
        ) from e


def write(path: Path, data: bytes, *, mode: int = 0o644, exclusive: bool = False) -> None:
    """Put `data` at `path`, whole or not at all."""
    with replacing(path, mode=mode, exclusive=exclusive) as file:
        file.write(data)


def chunks(path: Path, *, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The content of a file in pieces, raising `StorageError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(chunk_bytes):
                yield chunk
    except OSError as e:
        raise StorageError(f"{path} cannot be read: {e.strerror}") from e


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and what is missing above it; one that is there already is left alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as e:
        raise StorageError(f"{folder} cannot be made: {e.strerror}") from e


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def config_home() -> Path:
    """Where a workstation keeps keys and settings."""
    return _xdg("XDG_CONFIG_HOME", ".config")


def cache_home() -> Path:
    """Where a workstation keeps what can be made again."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def data_home() -> Path:
    """Where a workstation keeps its fleet and repository."""
    return _xdg("XDG_DATA_HOME", ".local/share")


def _xdg(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default) / "edgekit"
