"""Start a command, keep what it prints, stop it after a time, and say what it took, as JSON.

Run: python watch.py LIMIT_S OUT LOG COMMAND…

A small process does this because Linux counts the memory of whoever starts a command as the
command's own, and whoever compares models is large. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time


def main() -> None:
    limit_s, command = float(sys.argv[1]), sys.argv[4:]
    late = threading.Event()
    started = time.monotonic()
    # Only new files: a wrong argument must not empty a program.
    with open(sys.argv[2], "xb") as out, open(sys.argv[3], "xb") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, start_new_session=True)

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit_s, stop)
    timer.start()
    try:
        # wait4 gives the memory of this one command and of those it waited for.
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        # The command has a group of its own, and did not hear the interrupt.
        stop()
        raise
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    figures = {
        "code": process.returncode,
        "late": late.is_set(),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": usage.ru_maxrss // 1024,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
