"""Build EfficientNet-Lite0 for this machine with real photographs: seconds, speed-up, agreement.

Run: python -m benchmarks.build.lite0 [--crops 45] [--json FILE]

Builds run as a user starts them, each in a process of its own: with the default budget, the same
again from what the first one kept, with pruning, which a recipe asks for, and a budget of .85
agreement, and for OpenVINO in place of onnxruntime. Figures to reach, on at least 400 crops with
intervals over photographs: at most 120 s, 2.2 times as fast as float at an agreement of .95 and 1.8
times at .97; 3 s for the second build; peak memory at most 6 times the float model and 500 MB.
Speed-ups are ratios of CPU time taken in turns; a machine with other work still shifts them: read
the load average beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.process import tell
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos

START = "from edgekit.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--crops", type=int, default=45, help="crops of each of 20 photographs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), crops=arguments.crops)
    tell(figures, file=arguments.json)


def measure(folder: Path, *, crops: int) -> dict[str, Any]:
    """The builds in `folder`, and their figures by name."""
    write_lite0(folder / "lite0.onnx")
    # In a process of its own: what this one has in memory would count as a build's peak.
    writer = multiprocessing.get_context("spawn").Process(
        target=write_photos, args=(folder,), kwargs={"crops": crops}
    )
    writer.start()
    writer.join()
    roomy = folder / "roomy.yaml"
    roomy.write_text(
        "passes: [{name: prune, options: {share: 0.15}}, {name: static-int8}]\n"
        "budget: {min_agreement: 0.85, accuracy_drop: 0.15}\n"
    )
    first = _build(folder, cache=folder / "cache")
    again = _build(folder, cache=folder / "cache")
    pruned = _build(folder, "--recipe", str(roomy), cache=folder / "cache-roomy")
    openvino = _build(folder, "--engine", "openvino", cache=folder / "cache")
    return {
        **first,
        "second_build_s": again["seconds"],
        "second_build_cpu_s": again["cpu_seconds"],
        "same_digest": first["digest"] == again["digest"],
        "pruned_with_a_budget_of_.85": pruned,
        "in_openvino": openvino,
    }


def _build(folder: Path, *options: str, cache: Path) -> dict[str, Any]:
    load = os.getloadavg()[0]
    command = [
        *(sys.executable, "-c", START, "build", str(folder / "lite0.onnx")),
        *("--profile", f"generic-{platform.machine()}", "--data", str(folder / "photos.npz")),
        *("--out", str(folder), "--json", *options),
    ]
    started = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "XDG_CACHE_HOME": str(cache)}
    ) as run:
        assert run.stdout is not None
        answer = run.stdout.read()
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    if run.returncode:
        raise SystemExit(f"the build ended with {run.returncode}")
    (found,) = json.loads(answer)["bundles"]
    best, float_ = found["variants"][0], found["variants"][-1]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(usage.ru_maxrss * 1024 / 1e6),
        "memory_limit_mb": round(6 * float_["size_bytes"] / 1e6 + 500),
        "variants": [f"{v['name']} ({v['scheme']})" for v in found["variants"]],
        "gate": found["gate"]["outcome"],
        "speedup": round(best["speedup"], 2),
        "speedup_quartiles": [round(end, 2) for end in best["speedup_quartiles"]],
        "agreement": round(best["agreement"], 4),
        "agreement_ci95": [round(end, 4) for end in best["agreement_ci95"]],
        "samples": found["data"]["evaluation"],
        "size_mb": round(best["size_bytes"] / 1e6, 2),
        "float_size_mb": round(float_["size_bytes"] / 1e6, 2),
        "trials": sum(not tried["probe"] for tried in found["tried"]),
        "digest": found["digest"],
        "load_before": round(load, 2),
        "measured_on": found["measured_on"],
    }


if __name__ == "__main__":
    main()
