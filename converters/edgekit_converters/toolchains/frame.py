"""Runs a driver in the interpreter of a tool chain: `frame.py DRIVER REQUEST REPLY`.

It needs the standard library alone and imports nothing of edgekit. REQUEST and REPLY are JSON; a
reply is `{"done": …}`, or `{"refused": "one line"}` where the driver raised `ValueError`, or
`{"broken": "one line"}` where the environment lacks what the driver imports. Standard input is the
lifeline: when whoever started this is gone, so is the process group.
"""

import json
import os
import runpy
import signal
import sys
import traceback


def _die_with_parent() -> None:
    """Leave a process that ends the group when the lifeline is cut."""
    if os.fork() == 0:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _reply(path: str, reply: "dict[str, object]") -> None:
    """Write it whole or not at all."""
    temporary = path + ".part"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(reply, file)
    os.replace(temporary, path)


def main(driver: str, request_file: str, reply_file: str) -> None:
    """Run the driver; what is not foreseen ends in its traceback."""
    _die_with_parent()
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    try:
        run = runpy.run_path(driver, run_name="driver")["run"]
        reply = {"done": run(request)}
    except ValueError as e:
        reply = {"refused": str(e) or type(e).__name__}
    except ImportError as e:
        traceback.print_exc()
        reply = {"broken": str(e) or type(e).__name__}
    _reply(reply_file, reply)


if __name__ == "__main__":
    main(*sys.argv[1:])
