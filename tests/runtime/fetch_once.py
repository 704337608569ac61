"""One download in a process of its own, to be killed or to meet a bad disk.

    python -m tests.runtime.fetch_once URL FOLDER [--fill]

Prints the reason code of what went wrong, or `done`. With `--fill` something else takes the rest of
the disk as soon as the first bytes are here.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from edgekit.errors import StorageError
from edgekit_runtime.update import UpdateFailed, disk_reason
from tests.runtime.fetching import get, make


def main(url: str, folder: Path, *options: str) -> None:
    def progress(_: float) -> None:
        if "--fill" in options and not (folder / "filler").exists():
            _fill(folder / "filler")

    def wait(seconds: float) -> bool:
        time.sleep(min(seconds, 0.05))
        return False

    try:
        fetcher = make(folder, url, idle_timeout_s=5.0)
        get(fetcher, limit_s=30, progress=progress, wait=wait)
        outcome = "done"
    except UpdateFailed as e:
        outcome = e.reason.value
    except StorageError as e:
        outcome = disk_reason(e).value
    sys.stdout.write(outcome)


def _fill(path: Path) -> None:
    with suppress(OSError), Path("/dev/zero").open("rb") as zeros, path.open("wb") as file:
        shutil.copyfileobj(zeros, file)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
