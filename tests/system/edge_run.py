"""`edgekit run` as a process: what it says, what it answers, and what it holds."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit_runtime.serving.address import Address, Tcp, Unix, parse
from tests.runtime.served import HOST, Answer, Wire, get
from tests.system.daemons import wait_for

# As /proc/net/tcp numbers them: established, and those whose client has closed.
_OPEN = ("01", "08")
# How long requests under way, workers and threads may take to end.
END_S = 60.0


class EdgeRun:
    """The process, from its first word on.

    Args:
        process: as it was started, with `--json`.
        log: where its standard error goes.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, self.log
        self.addresses = [_address(text) for text in json.loads(line)["addresses"]]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        address = self.addresses[0]
        assert isinstance(address, Tcp)
        return address.port

    @property
    def log(self) -> str:
        """What it said on standard error."""
        return self._log.read_text()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: bytes) -> Answer:
        """Over a connection of its own."""
        with Wire(self) as wire:
            return wire.ask(request)

    def connections(self) -> int:
        """TCP connections of clients that it has not closed."""
        local = f":{self.port:04X}"
        table = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in table]
        return sum(row[1].endswith(local) and row[3] in _OPEN for row in rows)

    def children(self) -> list[int]:
        """Its child processes, of all of its threads."""
        tasks = Path(f"/proc/{self.pid}/task")
        lists = [(task / "children").read_text() for task in tasks.iterdir()]
        return sorted(int(number) for text in lists for number in text.split())

    def holds(self) -> Counter[str]:
        """Descriptors by kind, shared memory that is mapped, threads and children."""
        folder = Path(f"/proc/{self.pid}")
        found: Counter[str] = Counter()
        for link in (folder / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed while we looked
                found[_kind(os.readlink(link))] += 1
        with (folder / "maps").open() as maps:
            shared = [line for line in maps if re.search("memfd|/dev/shm", line)]
        found["mapped"] = len({line.split(maxsplit=4)[4] for line in shared})
        found["threads"] = len(list((folder / "task").iterdir()))
        found["children"] = len(self.children())
        return found

    def metric(self, name: str, *labels: str) -> float:
        """The sum of a metric's samples that have these labels, written `name="value"`."""
        page = self.ask(get("/metrics")).body.decode()
        lines = [line for line in page.splitlines() if re.match(rf"{name}[{{ ]", line)]
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if all(one in line for one in labels)
        )

    def limit_descriptors(self, count: int | None = None) -> None:
        """Let it have so many, or as many as we may."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (count or hard, hard))

    def settles(self, before: Counter[str]) -> None:
        """Wait until it holds no more than it did."""
        left: list[Counter[str]] = []

        def has_let_go() -> bool:
            left[:] = [self.holds() - before]
            return not left[0]

        wait_for(has_let_go, f"the end of what it held beyond {before}", timeout_s=END_S)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the code that it ends with."""
        self._process.send_signal(number)
        return self._process.wait(END_S)


def _kind(link: str) -> str:
    """Of a descriptor, by what it stands for: `socket`, `memfd:edgekit`, `file`."""
    if link.startswith("/") and not link.startswith(("/memfd:", "/dev/shm/")):
        return "file"
    return re.sub(r":?\[[0-9]+\]", "", link)


def _address(text: str) -> Address:
    """As the process writes it: `http://HOST:PORT` or `unix:PATH`."""
    kind, _, rest = text.partition(":")
    return Unix(Path(rest)) if kind == "unix" else parse(rest.removeprefix("//"))


@contextmanager
def running(
    bundle: Path, *words: str | Path, log: Path, within: Sequence[str] = ()
) -> Iterator[EdgeRun]:
    """Serve a bundle at a free port until the block ends.

    Args:
        bundle: the file; who signed it does not matter.
        words: more of the command line.
        log: for its standard error.
        within: a command that runs another one, such as `unshare`.
    """
    command = [sys.executable, "-W", "error", "-m", "edgekit", "run", "--json", "--insecure"]
    command += [str(bundle), "--listen", f"{HOST}:0", *map(str, words)]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*within, *command], stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            yield EdgeRun(process, log)
        finally:
            process.kill()
