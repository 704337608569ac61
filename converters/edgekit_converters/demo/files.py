"""Where the demo's assets come from and how its files are written.

Promise: a file appears whole or not at all, and a package is looked at without running its code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, StorageError


def package_folder(package: str) -> Path:
    """Where an installed package keeps its files; nothing of it is imported.

    Raises:
        DataError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"package {package}, which holds data of the demo, is not installed",
            hint="pip install 'edgekit-ml[demo]'",
        )
    return Path(spec.submodule_search_locations[0])


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write under another name in the same folder, and rename when the block has succeeded.

    The folder is made where it is missing.

    Raises:
        StorageError: the file cannot be written.
    """
    # The suffix stays last: numpy adds its own to any other name.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as e:
        raise StorageError(
            f"cannot write {path}: {e.strerror or e}",
            hint="choose a folder with space and permission",
        ) from e


def write_arrays(path: Path, **arrays: NDArray[np.generic]) -> None:
    """Write named arrays as an uncompressed `.npz`; the same arrays give the same bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    with whole(path) as partial:
        np.savez(partial, allow_pickle=False, **arrays)
