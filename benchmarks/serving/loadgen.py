"""`edgekit limits` beside MLPerf LoadGen: the same server, the same SLO, two generators.

    python -m benchmarks.serving.loadgen --json out.json

LoadGen's Server scenario (Poisson, latency from the scheduled moment) runs at rates that our own
search rule chooses, so that only generator and verdict differ. `edgekit limits --server` runs
before and after it; a machine that changed in between shows there. LoadGen comes from PyPI
(`mlcommons-loadgen`) into an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.serving import subject
from benchmarks.serving.peers import environments
from benchmarks.serving.subject import MODELS
from edgekit_runtime.capacity import slo
from edgekit_runtime.capacity.search import FIRST_SHARE, Rule, Trial, Try
from edgekit_runtime.capacity.slo import Objective
from edgekit_runtime.capacity.target import started
from tests import bundles

PACKAGES = ("mlcommons-loadgen==6.0.17",)
CLIENT = Path(__file__).with_name("loadgen_client.py")


def ours(bundle: Path, address: str, objective: Objective, *, seconds: float) -> dict[str, Any]:
    """What `edgekit limits` says of a running server."""
    words = ["limits", str(bundle), "--insecure", "--server", address, "--slo", str(objective)]
    command = [sys.executable, "-m", "edgekit", *words, "--seconds", str(seconds), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    page: dict[str, Any] = json.loads(done.stdout)
    return page


def theirs(
    address: str, message: Path, objective: Objective, *, rate: float, seconds: float
) -> dict[str, Any]:
    """One run of LoadGen."""
    host, _, port = address.partition("//")[2].rpartition(":")
    interpreter = environments.python("loadgen", PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        words = [host, port, message, objective.limit_ns, objective.quantile, rate, seconds, folder]
        command = [str(interpreter), str(CLIENT), *map(str, words)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def search(
    address: str, message: Path, objective: Objective, *, top: float, seconds: float
) -> dict[str, Any]:
    """The highest rate that LoadGen's percentile meets, by the rule of `edgekit limits`."""
    rule = Rule(start=top * FIRST_SHARE, step=top / 200)
    trials: list[Trial] = []
    runs: list[dict[str, Any]] = []
    while isinstance(step := rule.next(trials), Try):
        run = theirs(address, message, objective, rate=step.load, seconds=seconds)
        # LoadGen's own "valid" also asks for enough queries; the percentile alone is compared.
        trials.append(Trial(step.load, run["performance_met"]))
        runs.append({"rate_per_s": step.load, **run})
        print(f"  LoadGen at {step.load:.1f}/s: {run}", flush=True)
    return {"rate_per_s": step.load, "above_per_s": step.above, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="convnet", choices=list(MODELS))
    parser.add_argument("--slo", default="p99=50ms")
    parser.add_argument("--seconds", type=float, default=60.0, help="of one `edgekit limits`")
    parser.add_argument("--run-seconds", type=float, default=5.0, help="of one LoadGen run")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    (objective,) = slo.parse([given.slo])
    with tempfile.TemporaryDirectory() as name:
        bundle = bundles.write(Path(name), name=given.model, model=MODELS[given.model][0])
        message = Path(name, "message")
        message.write_bytes(subject.request(given.model))
        words = ["--insecure", "--listen", "127.0.0.1:0", "--workers", given.workers]
        with started(bundle, words) as target:
            before = ours(bundle, target.address, objective, seconds=given.seconds)
            print(f"edgekit limits: {before['rate_per_s']:.1f}/s", flush=True)
            top = before["throughput"][0]["predictions_per_s"]
            found = search(target.address, message, objective, top=top, seconds=given.run_seconds)
            after = ours(bundle, target.address, objective, seconds=given.seconds)
    own = [before["rate_per_s"], after["rate_per_s"]]
    figures = {
        "model": given.model,
        "slo": str(objective),
        "edgekit_per_s": own,
        "loadgen_per_s": found["rate_per_s"],
        "loadgen_over_edgekit": found["rate_per_s"] / (sum(own) / 2) if sum(own) else None,
        "loadgen": found,
    }
    print(json.dumps({name: value for name, value in figures.items() if name != "loadgen"}))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
