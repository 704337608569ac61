"""Where the demo's assets come from and how its files are written.

Promise: a file appears whole or not at all, and a package is looked at without running its code.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit import storage
from edgekit.errors import DataError


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


def write_arrays(path: Path, **arrays: NDArray[np.generic]) -> None:
    """Write named arrays as an uncompressed `.npz`; the same arrays give the same bytes.

    Raises:
        StorageError: the file cannot be written.
    """
    with storage.replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
