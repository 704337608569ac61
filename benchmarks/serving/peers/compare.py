"""CPU, requests per second, memory and cold start of our server beside its peers, interleaved.

    python -m benchmarks.serving.peers.compare --json peers.json --markdown peers.md

Every server runs the same ONNX file in onnxruntime on one thread, and all of them stand there at
once; each round drives one after the other over 8 connections, so that whatever else the machine
does falls on all alike. CPU is that of the whole process tree, medians over rounds. First the
answers are compared: a server that is fast and wrong ends the benchmark.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.__main__ import machine
from benchmarks.serving.peers import environments, subjects
from benchmarks.serving.peers.forms import Form
from benchmarks.serving.peers.subjects import Subject
from benchmarks.serving.subject import MEASURED, MODELS
from tests import bundles

FORMS: tuple[Form, ...] = ("binary", "json")
# Peers that the best is taken of; FastAPI by hand is no inference server.
SERVERS = subjects.PEERS[1:]

Rows = dict[str, dict[str, Any]]


def measure(
    name: str, *, peers: Sequence[str], workers: Sequence[str], rounds: int, duration_s: float
) -> Rows:
    """Medians for one model: by subject, `cpu_us` and `requests_per_s` by form, and the rest."""
    raw, shape, _ = MODELS[name]
    array = bundles.samples(1, shape[1:])
    expected = bundles.directly(raw, array)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder, "model.onnx")
        model.write_bytes(raw)
        bundle = bundles.write(Path(folder), name=name, model=raw)
        made = [subjects.ours(bundle, name, workers=mode) for mode in workers]
        made += [subjects.peer(peer, model, shape) for peer in peers]
        running: list[Subject] = []
        for subject in made:
            # One after the other: a cold start beside another one is slower.
            running.append(stack.enter_context(subject))
            subject.wait(array, expected)
            print(f"{name}: {subject.name} answers after {subject.start_s:.2f} s", flush=True)
        found: dict[tuple[str, Form], list[dict[str, float]]] = defaultdict(list)
        for number in range(rounds + 1):
            for subject in running:
                for form in subject.all_forms:
                    one = subject.drive(array, form, duration_s=duration_s)
                    # The first round warms up.
                    if number:
                        found[subject.name, form].append(one)
        return {
            subject.name: {
                **{
                    form: {
                        key: median(one[key] for one in found[subject.name, form])
                        for key in ("cpu_us", "requests_per_s")
                    }
                    for form in FORMS
                    if found[subject.name, form]
                },
                "pss_mb": subject.pss_mb(),
                "start_s": subject.start_s,
                "start_cpu_s": subject.start_cpu_s,
            }
            for subject in running
        }


def ratios(models: Mapping[str, Rows], ours: str) -> dict[str, float]:
    """What the targets of the issue name: how many times less CPU, how many times more requests."""
    found: dict[str, float] = {}
    for name, rows in models.items():
        own = rows[ours]
        for form in FORMS:
            others = [rows[peer][form] for peer in SERVERS if form in rows.get(peer, {})]
            if others:
                best_us = min(other["cpu_us"] for other in others)
                most = max(other["requests_per_s"] for other in others)
                found[f"{name} {form} CPU, best server / ours"] = best_us / own[form]["cpu_us"]
                found[f"{name} {form} requests/s, ours / best server"] = (
                    own[form]["requests_per_s"] / most
                )
            for peer in ("fastapi_raw", "pytriton_server"):
                if form in rows.get(peer, {}):
                    ratio = rows[peer][form]["cpu_us"] / own[form]["cpu_us"]
                    found[f"{name} {form} CPU, {peer} / ours"] = ratio
    return found


def markdown(models: Mapping[str, Rows], compared: Mapping[str, float], ours: str) -> str:
    """The figures as tables."""
    lines = []
    for name, rows in models.items():
        lines += [
            f"### {name}, 8 connections, whole process tree",
            "",
            "| server | CPU binary | CPU JSON | requests/s binary | requests/s JSON | PSS"
            " | cold start | CPU of it |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for subject, row in rows.items():
            cpu = [f"{row[f]['cpu_us']:.0f} µs" if f in row else "-" for f in FORMS]
            rate = [f"{row[f]['requests_per_s']:.0f}" if f in row else "-" for f in FORMS]
            lines.append(
                f"| {subject} | {' | '.join(cpu)} | {' | '.join(rate)} | {row['pss_mb']:.0f} MB |"
                f" {row['start_s']:.1f} s | {row['start_cpu_s']:.1f} s |"
            )
        lines.append("")
    lines += [f"Ratios, for `{ours}`:", "", "| what | ratio |", "|---|---|"]
    lines += [f"| {what} | {ratio:.2f} |" for what, ratio in compared.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one loop")
    parser.add_argument("--peers", nargs="*", default=list(subjects.PEERS))
    parser.add_argument("--models", nargs="*", default=list(MEASURED))
    parser.add_argument("--workers", nargs="+", default=["auto"], help="modes of our own server")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    models = {
        name: measure(
            name,
            peers=given.peers,
            workers=given.workers,
            rounds=given.rounds,
            duration_s=given.seconds,
        )
        for name in given.models
    }
    ours = f"edgekit {given.workers[0]}"
    compared = ratios(models, ours)
    text = markdown(models, compared, ours)
    print(text)
    if given.markdown:
        given.markdown.write_text(text, "utf-8")
    if given.json:
        page = {
            "machine": machine(),
            "models": models,
            "ratios": compared,
            "environments": {
                name: environments.versions(subjects.environment(name)) for name in given.peers
            },
        }
        given.json.write_text(json.dumps(page, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
