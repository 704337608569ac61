"""Trees: files of boards below `/sys` and `/proc`, one board a file of lines `path = content`.

Each file says where its structure is documented, and whether it was recorded on hardware.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
BOARDS = sorted(path.stem for path in FOLDER.glob("*.tree"))


def plant(board: str, root: Path) -> Path:
    """Write a board's files below a folder, and return that."""
    for line in (FOLDER / f"{board}.tree").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, content = line.partition(" = ")
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n", "ascii")
    return root
