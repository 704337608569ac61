"""What trust costs a device: CPU of a look at the repository, bytes of metadata, memory.

    python -m benchmarks.device.tuf_refresh [--repeats 15] [--json FILE]

CPU is user and system time of a whole process, and three kinds take turns, so that a busy machine
slows all alike: `python -c pass`, a process that imports every module that the child has imported
when it ends, and the child itself with nothing new in the repository. Bytes are of the bodies that
the server sent for repositories with so many targets, a quarter of them bundles and the others
their deltas; the entries are made up, the signatures are real. Memory is the daemon's side: PSS of
a process that holds `Repository`, before and after it asked.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
from tuf.api.metadata import Metadata, TargetFile, Targets

from benchmarks.process import tell
from edgekit import released
from edgekit.fleet.tuf import publish, roles
from edgekit.released import Custom, DeltaEntry
from edgekit_runtime.trusted.repository import LIMIT_BYTES
from edgekit_runtime.trusted.target import Request, encode
from tests.runtime.hostile_repository import Server, SignedFleet

PATH = "tiny/1.0.0/generic-x86_64.edge"
SIZES = (1000, 10_000)
CHILD = ("-m", "edgekit_runtime.trusted")
# The child as it is, and then what it imported only while it worked, and its largest memory.
TELLING = """
import json, sys
from edgekit_runtime.trusted import __main__ as child
from benchmarks.process import peak_rss_mb
before = set(sys.modules)
child.main()
print(json.dumps([sorted(sys.modules.keys() - before), peak_rss_mb("self")]), file=sys.stderr)
"""
# The parent of `find`: what a daemon holds for it, measured where nothing else is.
PARENT = """
import sys
from pathlib import Path
from benchmarks.process import pss_mb
from edgekit_runtime.trusted.repository import Repository
url, root, state = sys.argv[1:]
repository = Repository(urls=[url], root=Path(root), state=Path(state))
found = []
for _ in range(4):
    found.append(pss_mb("self"))
    repository.find("tiny/1.0.0/generic-x86_64.edge", cancelled=lambda: False)
print(found[0], pss_mb("self"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures: dict[str, float | int] = {}
    with tempfile.TemporaryDirectory() as name:
        signed = SignedFleet.make(Path(name))
        signed.publish("1.0.0")
        with Server(signed.fleet.repository) as server:
            figures |= cpu(signed, server, repeats=given.repeats)
            figures |= memory(signed, server)
            for count in SIZES:
                figures |= size(signed, server, targets=count)
    tell(figures, file=given.json)


def cpu(signed: SignedFleet, server: Server, *, repeats: int) -> dict[str, float | int]:
    """CPU milliseconds of the three kinds of processes, and the child's largest memory."""
    asked = encode(_request(signed, server, device="device"))
    told = subprocess.run(
        [sys.executable, "-c", TELLING], input=asked, capture_output=True, check=True
    )
    late, peak_mb = json.loads(told.stderr)
    modules = ["edgekit_runtime.trusted.__main__", *late]
    importing = "; ".join(f"import {name}" for name in modules)
    kinds: dict[str, tuple[Sequence[str], bytes]] = {
        "python_pass_cpu_ms": (("-c", "pass"), b""),
        "imports_cpu_ms": (("-c", importing), b""),
        "refresh_cpu_ms": (CHILD, asked),
    }
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, (arguments, given) in kinds.items():
            used = _run(arguments, given)
            spent[kind].append((used.ru_utime + used.ru_stime) * 1000)
    found: dict[str, float | int] = {kind: median(values) for kind, values in spent.items()}
    pairs = zip(spent["refresh_cpu_ms"], spent["imports_cpu_ms"], strict=True)
    above = [refresh - imports for refresh, imports in pairs]
    return found | {"refresh_above_imports_cpu_ms": median(above), "child_peak_rss_mb": peak_mb}


def memory(signed: SignedFleet, server: Server) -> dict[str, float | int]:
    """PSS of the asking process before it first asked, and after four times."""
    arguments = [server.url, str(signed.fleet.trust_root), str(signed.work / "parent")]
    said = subprocess.run(
        [sys.executable, "-c", PARENT, *arguments], capture_output=True, check=True, text=True
    )
    before, after = (float(word) for word in said.stdout.split())
    return {"asking_pss_before_mb": before, "asking_pss_after_mb": after}


def size(signed: SignedFleet, server: Server, *, targets: int) -> dict[str, float | int]:
    """Bytes that a device fetches: the first time, after one release, and with nothing new."""
    _fill(signed, targets)
    found: dict[str, float | int] = {}
    for what in ("first", "nothing_new", "one_release"):
        path = PATH
        if what == "one_release":
            path = signed.publish(f"9.{targets}.0").entry.path
        server.sent_bytes = 0
        _run(CHILD, encode(_request(signed, server, device=f"device-{targets}", path=path)))
        found[f"bytes_{what}_{targets}"] = server.sent_bytes
    found[f"bytes_one_file_{targets}"] = _one_file(signed)
    return found


def _fill(signed: SignedFleet, targets: int) -> None:
    """Sign for bundles that do not exist, each with deltas from three others."""
    with signed.editing() as editor:
        signer = signed.signer(signed.fleet.release_key)
        for number in range(targets // 4):
            path = released.bundle_path(
                name=f"model-{number % 20}", version=f"1.{number}.0", profile="raspberry-pi-5"
            )
            deltas = []
            for step in range(1, 4):
                base = f"{number * 4 + step:064x}"[::-1]
                entry = DeltaEntry(
                    base=f"sha256:{base}",
                    path=released.delta_path(path, base=f"sha256:{base}"),
                    sha256=base,
                    size_bytes=1_000_000,
                )
                deltas.append(entry)
                _sign_for(editor.read(publish.role_of(entry.path)), entry.path, None)
            _sign_for(
                editor.read(publish.role_of(path)),
                path,
                Custom(digest=f"sha256:{number:064x}", deltas=tuple(deltas)),
            )
        for role in editor.targets_roles():
            if role.startswith(f"{roles.RELEASES}-"):
                editor.change(role, signer)


def _sign_for(metadata: Metadata[Targets], path: str, custom: Custom | None) -> None:
    fields = {} if custom is None else {"custom": msgspec.to_builtins(custom)}
    sha256 = f"{abs(hash(path)):064x}"
    metadata.signed.targets[path] = TargetFile(5_000_000, {"sha256": sha256}, path, fields)


def _one_file(signed: SignedFleet) -> int:
    """Bytes of a targets file with all of it, as a repository without delegations has it."""
    everything = Targets()
    with signed.editing() as editor:
        for role in editor.targets_roles():
            everything.targets |= editor.read(role).signed.targets
    return len(Metadata(everything).to_bytes())


def _request(signed: SignedFleet, server: Server, *, device: str, path: str = PATH) -> Request:
    return Request(
        path=path,
        urls=(server.url,),
        root=signed.fleet.trust_root,
        state=signed.work / device,
        ca=None,
        limit_s=60.0,
        limit_bytes=LIMIT_BYTES,
    )


def _run(arguments: Sequence[str], given: bytes) -> resource.struct_rusage:
    """What a Python process used from start to end; it must end well."""
    with subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(given)
        process.stdin.close()
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or (given and b'"found"' not in said):
        raise RuntimeError(f"{arguments} ended with {process.returncode}: {said!r}")
    return used


if __name__ == "__main__":
    main()
