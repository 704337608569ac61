"""How often drift is seen where there is none, and where there is: on real digits, photographs and
movements.

    python -m benchmarks.serving.drift [--imu watch_dataset.npy] [--windows 1200] [--seed 11]
        [--json out.json]

Each window has a reference and a stream of its own: the sources of the data are dealt out anew, so
no two windows share their luck. Without a shift the share of alarms is to stay at or below the
level, here at 1 % and at the rate that a device uses, 1 % of days with a window an hour. Then the
stream is shifted: darker, blurred, from another camera, with other labels, of people that the
reference has not seen. `correlated` breaks what the rate rests on: the blocks of a window show the
same few sources again.

Movements are those of the package seglearn (BSD), which is not installed here by default:
`pip download --no-deps seglearn==1.2.5` and name its data/watch_dataset.npy with --imu.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks.process import tell
from edgekit.drift.judge import judge_parts
from edgekit.drift.reference import BINS, bins_of, part_of
from edgekit.drift.views import Floats, View, view_of
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos
from edgekit_runtime.drift import BLOCKS, Pace
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import run_all

LEVELS = (0.05, 0.01, Pace().level)
CROPS = 30
Floats32 = NDArray[np.float32]
Model = Callable[[NDArray[Any]], NDArray[Any]]
Shift = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Data:
    """Samples as drift sees them.

    Attributes:
        views: of the input and of the output.
        numbers: [samples, features] of each.
        groups: the source of each sample.
        labels: the truth.
        block_groups: sources that a block of a window shows.
        reference_groups: sources of a reference.
        blocks: of a window.
    """

    views: tuple[View, View]
    numbers: tuple[Floats, Floats]
    groups: NDArray[np.int64]
    labels: NDArray[np.int64]
    block_groups: int
    reference_groups: int
    blocks: int = BLOCKS

    def rows(self, groups: NDArray[np.int64]) -> NDArray[np.intp]:
        """Positions of the samples of these sources."""
        return np.flatnonzero(np.isin(self.groups, groups))


def seen(inputs: NDArray[Any], model: Model, like: Data | None = None) -> tuple[Any, Any]:
    """Views and numbers of inputs and of what a model answers."""
    answers = model(inputs)
    views = (
        like.views
        if like
        else (view_of("input", inputs[0]), view_of("scores", answers[0], scores=True, softmax=True))
    )
    assert views[0] is not None
    assert views[1] is not None
    numbers = (
        np.array([views[0].measure(row) for row in inputs]),
        np.array([views[1].measure(row) for row in answers]),
    )
    return views, numbers


def counts(data: Data, part: int, edges: Floats, blocks: Sequence[NDArray[np.intp]]) -> Any:
    """What blocks of samples are as counts [blocks, features, bins]."""
    features = np.arange(len(edges))
    found = np.zeros((len(blocks), len(edges), BINS), np.uint16)
    for table, rows in zip(found, blocks, strict=True):
        for bins in bins_of(data.numbers[part][rows], edges):
            table[features, bins] += 1
    return found


def p_of(
    data: Data,
    stream: Data,
    reference: NDArray[np.int64],
    blocks: Sequence[NDArray[np.int64]],
    rng: np.random.Generator,
) -> float:
    """The p value of one window: sources of its blocks against those of a reference."""
    rows = data.rows(reference)
    pairs = []
    for at in range(2):
        part = part_of([data.views[at]], data.numbers[at][rows], data.groups[rows])
        window = counts(stream, at, part.edges(), [stream.rows(groups) for groups in blocks])
        pairs.append((part.counts(), window))
    found = judge_parts(pairs, least_rows=1, rng=rng)
    assert found is not None
    return found[1].p


def windows(
    data: Data,
    stream: Data,
    count: int,
    *,
    rng: np.random.Generator,
    weight: Callable[[NDArray[np.int64]], Floats] | None = None,
    repeated: int = 1,
) -> Floats:
    """P values of windows, each with sources dealt out anew.

    Args:
        weight: how likely sources are to be seen, by their labels; one may then come again.
        repeated: blocks that show the same sources.
    """
    names = np.unique(data.groups)
    first = np.array([np.flatnonzero(data.groups == name)[0] for name in names])
    found = []
    for _ in range(count):
        order = rng.permutation(len(names))
        reference = names[order[: data.reference_groups]]
        rest = order[data.reference_groups :]
        needed = data.block_groups * math.ceil(data.blocks / repeated)
        if weight is not None:
            chances = weight(data.labels[first[rest]])
            rest = rng.choice(rest, needed, p=chances / chances.sum())
        shown = names[rest[:needed]].reshape(-1, data.block_groups)
        blocks = [shown[at // repeated] for at in range(data.blocks)]
        found.append(p_of(data, stream, reference, blocks, rng))
    return np.array(found)


def shares(found: Floats) -> dict[str, Any]:
    """Alarms at each level, and how sure their rate is (a 95 % interval by Wilson)."""
    told: dict[str, Any] = {"windows": len(found)}
    for level in LEVELS:
        rate, z, n = float((found <= level).mean()), 1.96, len(found)
        middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        told[f"at {level:.2g}"] = [rate, round(max(0.0, middle - half), 5), round(middle + half, 5)]
    return told


def study(
    name: str,
    data: Data,
    shifted: Mapping[str, Data],
    weights: Mapping[str, Callable[[NDArray[np.int64]], Floats]],
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Alarms without a shift, with broken assumptions, and with each shift."""
    rng = np.random.default_rng(seed)
    found = {f"{name}: no drift": windows(data, data, count, rng=rng)}
    found[f"{name}: correlated"] = windows(data, data, count // 4, rng=rng, repeated=4)
    for what, stream in shifted.items():
        found[f"{name}: {what}"] = windows(data, stream, count // 10, rng=rng)
    for what, weight in weights.items():
        found[f"{name}: {what}"] = windows(data, data, count // 10, rng=rng, weight=weight)
    return {what: shares(p_values) for what, p_values in found.items()}


def classes(chosen: Sequence[int], times: float) -> Callable[[NDArray[np.int64]], Floats]:
    """Sources of some classes are seen this many times as often."""
    return lambda labels: np.where(np.isin(labels, chosen), times, 1.0)


def digits(count: int, seed: int) -> dict[str, Any]:
    """8 x 8 digits of scikit-learn, each a source of its own, and a network of 32 units."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8)
    order = np.random.default_rng(3).permutation(len(images))
    train, rest = order[:600], order[600:]
    network = MLPClassifier((32,), max_iter=400, random_state=1)
    network.fit(images[train].reshape(-1, 64), labels[train])

    def model(batch: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(network.predict_log_proba(batch.reshape(len(batch), 64)))

    views, numbers = seen(images[rest], model)
    groups = np.arange(len(rest), dtype=np.int64)
    data = Data(views, numbers, groups, labels[rest], 32, 600)

    def by(shift: Shift) -> Data:
        return replace(data, numbers=seen(shift(images[rest]), model, data)[1])

    def blurred(batch: NDArray[Any]) -> NDArray[Any]:
        padded = np.pad(batch, ((0, 0), (1, 1), (1, 1)))
        return np.asarray((4 * batch + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2]) / 6, np.float32)

    shifted = {
        "10 % darker": by(lambda batch: batch * np.float32(0.9)),
        "20 % darker": by(lambda batch: batch * np.float32(0.8)),
        "blurred a little": by(blurred),
        "turned around": by(lambda batch: np.rot90(batch, 2, (1, 2)).copy()),
    }
    weights = {
        "0 to 2 twice as often": classes([0, 1, 2], 2.0),
        "0 to 2 five times": classes([0, 1, 2], 5.0),
    }
    return study("digits", data, shifted, weights, count, seed)


def photos(count: int, seed: int) -> dict[str, Any]:
    """20 photographs with 30 crops each, and EfficientNet-Lite0; a block shows one photograph."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lite0(folder / "lite0.onnx")
        with np.load(write_photos(folder, crops=CROPS)) as file:
            crops, labels, groups = file["input"], file["labels"], file["groups"]
        session = ENGINES.get("onnxruntime").open(folder / "lite0.onnx", options={"threads": 1})
        (asked,), (given,) = session.inputs, session.outputs

        def model(batch: NDArray[Any]) -> NDArray[Any]:
            return run_all(session, {asked.name: batch}, max_batch=1)[given.name]

        views, numbers = seen(crops, model)
        data = Data(views, numbers, groups, labels, 1, 12, blocks=8)

        def by(shift: Callable[[Image.Image], Image.Image]) -> Data:
            pixels = np.clip(crops * 128 + 127, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
            changed = [np.asarray(shift(Image.fromarray(one)), np.float32) for one in pixels]
            batch = (np.stack(changed).transpose(0, 3, 1, 2) - 127) / np.float32(128)
            return replace(data, numbers=seen(batch, model, data)[1])

        def camera(image: Image.Image) -> Image.Image:
            red, green, blue = (
                channel.point(table) for channel, table in zip(image.split(), TABLES, strict=True)
            )
            return Image.merge("RGB", (red, green, blue)).filter(ImageFilter.GaussianBlur(0.7))

        shifted = {
            "40 % darker": by(lambda image: image.point(lambda value: int(value * 0.6))),
            "blurred by 2 pixels": by(lambda image: image.filter(ImageFilter.GaussianBlur(2))),
            "another camera": by(camera),
        }
        session.close()
    return study("photographs", data, shifted, {}, count, seed)


# Gamma and white balance of another camera, a channel each.
TABLES = [
    [min(255, int(255 * gain * (value / 255) ** gamma)) for value in range(256)]
    for gain, gamma in ((1.1, 1.4), (0.95, 1.4), (0.8, 1.5))
]


def movements(path: Path, count: int, seed: int) -> dict[str, Any]:
    """140 recordings of a watch, 6 axes at 50 Hz, in windows of 2 s; a block shows two of them."""
    # The package's own file, named on the command line by whoever trusts it.
    held = np.load(path, allow_pickle=True).item()
    cut, groups = [], []
    for number, series in enumerate(held["X"]):
        starts = range(0, len(series) - 100, 50)
        cut += [series[start : start + 100] for start in starts]
        groups += [number] * len(starts)
    samples = np.asarray(cut, np.float32)
    sources = np.asarray(groups, np.int64)
    labels = np.asarray(held["y"], np.int64)[sources]
    subjects = np.asarray(held["subject"], np.int64)[sources]

    def hand(batch: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([batch.mean(1), batch.std(1), batch.min(1), batch.max(1)], axis=1)

    trained = sources % 4 == 0
    scale = hand(samples[trained]).std(0) + 1e-6
    network = MLPClassifier((32,), max_iter=300, random_state=1)
    network.fit(hand(samples[trained]) / scale, labels[trained])

    def model(batch: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(network.predict_log_proba(hand(batch) / scale))

    rest = ~trained
    views, numbers = seen(samples[rest], model)
    data = Data(views, numbers, sources[rest], labels[rest], 2, 70)

    def by(shift: Shift) -> Data:
        return replace(data, numbers=seen(shift(samples[rest]), model, data)[1])

    rotated = np.array([1, 0, 2, 4, 3, 5])
    shifted = {
        "gain of 1.2": by(lambda batch: batch * np.float32(1.2)),
        "watch turned": by(lambda batch: batch[:, :, rotated]),
        "half the rate": by(lambda batch: np.repeat(batch[:, ::2], 2, axis=1)),
    }
    weights = {"two exercises five times": classes([0, 1], 5.0)}
    told = study("movements", data, shifted, weights, count, seed)
    return {**told, **strangers(data, subjects[rest], count // 10)}


def strangers(data: Data, subjects: NDArray[np.int64], count: int) -> dict[str, Any]:
    """Windows of people whom the reference has not seen; their recordings resemble each other."""
    rng = np.random.default_rng(12)
    found = []
    for _ in range(count):
        people = rng.permutation(np.unique(subjects))
        known = np.unique(data.groups[np.isin(subjects, people[:7])])
        others = rng.permutation(np.unique(data.groups[np.isin(subjects, people[7:])]))
        blocks = list(others[: 2 * (len(others) // 2)].reshape(-1, 2))[:BLOCKS]
        found.append(p_of(data, data, known, blocks, rng))
    return {"movements: three other people": shares(np.array(found))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--imu", type=Path)
    parser.add_argument("--windows", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # Networks that could still learn will do: drift asks what changes, not how good they are.
    warnings.simplefilter("ignore", ConvergenceWarning)
    count, seed = given.windows, given.seed
    figures = {**digits(count, seed), **photos(count, seed)}
    if given.imu is not None:
        figures |= movements(given.imu, count, seed)
    tell({"level of a device": f"{Pace().level:.2g}", **figures}, file=given.json)


if __name__ == "__main__":
    main()
