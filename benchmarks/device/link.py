"""What an update costs on a link that breaks: bytes on the wire over bytes of the bundle.

    python -m benchmarks.device.link [--rate BYTES_S] [--breaks 10] [--json FILE]

A real bundle behind a real static server (starlette on uvicorn), behind `tests.faults.LinkProxy` at
1 Mbit/s, which resets the connection each time that a further share of the bundle has come over;
once more, the process is killed (`kill -9`) at these places instead. The proxy counts what it
delivered, heads of answers with it. `curl -C -` in a loop and `wget -c` do the same beside it,
where they are installed. The link is simulated on one machine: no packet is lost, and heads of TCP
and IP do not count.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from benchmarks.process import tell
from edgekit.bundle import describe
from tests import bundles
from tests.faults import Conditions, LinkProxy

# Fetches a URL into a folder over a link; returns the file.
Client = Callable[[str, Path, LinkProxy], Path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=125_000, help="bytes a second")
    parser.add_argument("--breaks", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tell(measure(Path(name), rate=given.rate, breaks=given.breaks), file=given.json)


def measure(folder: Path, *, rate: int, breaks: int) -> dict[str, Any]:
    """For each client: what came over the link beyond the bundle, as a share of it."""
    held = folder / "repository"
    held.mkdir()
    edge = bundles.write(held, large=True)
    size_bytes = edge.stat().st_size
    places = [size_bytes * number // (breaks + 1) for number in range(1, breaks + 1)]
    command = _edgekit(edge)
    cut: dict[str, Client] = {"edgekit": lambda url, to, _: _once(command(url, to), to)}
    if shutil.which("curl"):
        cut["curl"] = _curl
    if shutil.which("wget"):
        cut["wget"] = _wget

    figures: dict[str, Any] = {"bundle_bytes": size_bytes, "rate_bytes_s": rate, "breaks": breaks}
    with serving(held) as port:

        def run(name: str, client: Client, cuts: Sequence[int]) -> None:
            to = folder / name
            to.mkdir()
            with LinkProxy(("127.0.0.1", port), conditions=Conditions(bytes_s=rate)) as proxy:
                proxy.cut_at(cuts)
                begun_s = time.monotonic()
                file = client(f"{proxy.url()}{edge.name}", to, proxy)
                figures[f"{name}_s"] = time.monotonic() - begun_s
                counts = proxy.counts()
            if file.read_bytes() != edge.read_bytes():
                raise AssertionError(f"{name} fetched another file")
            figures[f"{name}_connections"] = counts.connections
            figures[f"{name}_again"] = counts.down_bytes / size_bytes - 1

        for name, client in cut.items():
            run(name, client, places)
        run("edgekit_killed", lambda url, to, _: _killed(command(url, to), to, places), [])
    return figures


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """A static server for a folder; gives its port."""
    app = Starlette(routes=[Mount("/", StaticFiles(directory=folder))])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def _edgekit(edge: Path) -> Callable[[str, Path], list[str]]:
    what = describe(edge)

    def command(url: str, to: Path) -> list[str]:
        client = [sys.executable, "-m", "benchmarks.device.link_client"]
        return [*client, url, what.sha256, str(what.size_bytes), str(to)]

    return command


def _once(command: Sequence[str], to: Path) -> Path:
    subprocess.run(command, check=True)
    return next(to.glob("*.part"))


def _killed(command: Sequence[str], to: Path, places: Sequence[int]) -> Path:
    """Kill the process each time that so much is on the disk."""
    for place in places:
        process = subprocess.Popen(command)
        while sum(part.stat().st_size for part in to.glob("*.part")) < place:
            if process.poll() is not None:
                raise AssertionError("the download ended before it was killed")
            time.sleep(0.005)
        process.kill()
        process.wait()
    return _once(command, to)


def _curl(url: str, to: Path, _: LinkProxy) -> Path:
    # Its own --retry begins anew at the first byte, so a loop asks for the rest.
    file = to / "file"
    while subprocess.run(["curl", "-s", "-C", "-", "-o", str(file), url], check=False).returncode:
        time.sleep(0.1)
    return file


def _wget(url: str, to: Path, _: LinkProxy) -> Path:
    file = to / "file"
    command = ["wget", "-q", "-c", "--tries=100", "--waitretry=1", "-O", str(file), url]
    subprocess.run(command, check=True)
    return file


if __name__ == "__main__":
    main()
