"""One way to rebuild a bundle, in a process of its own: `delta`, `bsdiff4` or `zstd`.

    python -m benchmarks.device.delta_apply WAY OLD PATCH OUT

Prints CPU seconds, and by how many MB the largest resident memory lies above that before.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.process import peak_rss_mb

WINDOW_LOG = 27


def by_delta(old: Path, patch: Path, out: Path) -> Callable[[], None]:
    """What a device does; `old` may be a slot."""
    from edgekit import delta

    head = delta.read_head(patch)
    return lambda: delta.apply(
        old,
        patch,
        out,
        wanted_sha256=head.target_sha256,
        wanted_size_bytes=head.target_size_bytes,
    )


def by_bsdiff4(old: Path, patch: Path, out: Path) -> Callable[[], None]:
    import bsdiff4

    return lambda: bsdiff4.file_patch(str(old), str(out), str(patch))


def by_zstd(old: Path, patch: Path, out: Path) -> Callable[[], None]:
    """As `zstd -d --patch-from=OLD`."""
    import zstandard

    def run() -> None:
        raw = zstandard.ZstdCompressionDict(old.read_bytes(), zstandard.DICT_TYPE_RAWCONTENT)
        reader = zstandard.ZstdDecompressor(dict_data=raw, max_window_size=1 << WINDOW_LOG)
        with patch.open("rb") as source, out.open("wb") as target:
            reader.copy_stream(source, target)

    return run


WAYS = {"delta": by_delta, "bsdiff4": by_bsdiff4, "zstd": by_zstd}


def main(way: str, old: Path, patch: Path, out: Path) -> None:
    run = WAYS[way](old, patch, out)
    # The largest so far counts from here on: proc(5), clear_refs.
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before_mb, started_s = _peak_mb(), time.process_time()
    run()
    spent_s, taken_mb = time.process_time() - started_s, _peak_mb() - before_mb
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    print(json.dumps({"cpu_s": spent_s, "peak_mb": taken_mb, "sha256": sha256}))


def _peak_mb() -> float:
    return peak_rss_mb(os.getpid())


if __name__ == "__main__":
    main(sys.argv[1], *(Path(argument) for argument in sys.argv[2:]))
