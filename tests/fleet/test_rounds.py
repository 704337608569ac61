"""Federated rounds over a real broker, with real training and the real build at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import signing
from edgekit.bundle import Bundle
from edgekit.messages import Refusal, RoundOpen, UpdateHeader
from edgekit.tensors import Arrays
from tests.fleet.device_simulator import DeviceSimulator, Trainer, constant_trainer
from tests.fleet.processes import Fleet, edgekit, until
from tests.fleet.trained_model import PROFILE, Digits


@pytest.fixture(scope="module")
def signed_fleet(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Fleet]:
    """A fleet whose coordinator may sign the results of rounds."""
    running = Fleet(
        tmp_path_factory.mktemp("rounds"),
        trust=keys / signing.PUBLIC_FILE,
        key=keys / signing.KEY_FILE,
    )
    yield running
    running.close()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"), key=keys / signing.KEY_FILE)


@pytest.fixture(scope="module")
def base(digits: Digits, signed_fleet: Fleet) -> Path:
    """The published bundle that rounds begin from."""
    path = digits.build("1.0.0")
    published = edgekit("publish", str(path), "--coordinator", signed_fleet.url)
    assert published.returncode == 0, published.stderr
    return path


def join(fleet: Fleet, stack: ExitStack, base: Path, trainers: dict[str, Trainer]) -> None:
    """Connect devices that serve the base and train it."""
    with Bundle.open(base) as opened:
        version, digest = opened.manifest.version, opened.digest
    for name, trainer in trainers.items():
        device = DeviceSimulator(
            fleet.mqtt, name, repository=fleet.repository, trains=["digits"], trainer=trainer
        )
        stack.enter_context(device).serves("digits", version, digest)
    until(lambda: all(fleet.devices().get(n, {}).get("trains") == ["digits"] for n in trainers))


def start(fleet: Fleet, digits: Digits, *options: str) -> dict[str, Any]:
    done = edgekit(
        *("round", "start", "--model", "digits", "--source", str(digits.source)),
        *("--data", str(digits.data), "--recipe", str(digits.recipe), "--profile", PROFILE),
        *("--coordinator", fleet.url, "--json", "--watch", *options),
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refusing(device: str) -> Trainer:
    def train(opened: RoundOpen, _: Arrays) -> Refusal:
        return Refusal(round=opened.round, device=device, reason="no_data", detail="too few")

    return train


def poisoned(device: str) -> Trainer:
    good = constant_trainer(device, step=0.0, samples=1 << 30)

    def train(opened: RoundOpen, parameters: Arrays) -> tuple[UpdateHeader, Arrays]:
        answer = good(opened, parameters)
        assert isinstance(answer, tuple)
        return answer[0], {name: np.full_like(a, np.nan) for name, a in answer[1].items()}

    return train


def lost_once(trainer: Trainer) -> Trainer:
    """Answers, and the broker loses the first answer."""
    given: list[object] = []

    def train(opened: RoundOpen, parameters: Arrays) -> Any:
        given.append(opened)
        return trainer(opened, parameters) if len(given) > 1 else None

    return train


def silent(_opened: RoundOpen, _parameters: Arrays) -> None:
    return None


def test_rounds_improve_the_model_and_the_result_is_published_and_rolled_out(
    signed_fleet: Fleet, digits: Digits, base: Path
) -> None:
    names = ["t-1", "t-2", "t-3"]
    with ExitStack() as stack:
        trainers = {
            name: digits.trainer(base, name, number=number)
            for number, name in enumerate(names, start=1)
        }
        join(signed_fleet, stack, base, trainers)

        done = start(
            signed_fleet, digits, "--count", "3", "--epochs", "3", "--batch-size", "16", "--rollout"
        )

        assert done["state"] == "done", done["reason"]
        assert [item["accepted"] for item in done["rounds"]] == [3, 3, 3]
        assert done["rounds"][-1]["loss_before"] < done["rounds"][0]["loss_before"]
        candidate = done["candidate"]
        assert candidate["version"] == "1.1.0"
        assert candidate["metric"]["value"] > candidate["base_metric"]["value"]
        until(
            lambda: all(
                signed_fleet.devices()[name]["models"]["digits"]["state"]["version"] == "1.1.0"
                for name in names
            )
        )
        rollout = signed_fleet.client.get(f"/api/rollouts/{done['rollout']}", dict[str, Any])
        assert (rollout["model"], rollout["version"]) == ("digits", "1.1.0")


def test_a_worse_model_is_refused_with_its_figures(
    signed_fleet: Fleet, digits: Digits, base: Path
) -> None:
    newest = newest_base(signed_fleet, digits, base, "2.0.0")
    with ExitStack() as stack:
        wrecked = {name: constant_trainer(name, step=0.4, samples=10) for name in ["v-1", "v-2"]}
        join(signed_fleet, stack, newest, wrecked)

        done = start(signed_fleet, digits, "--count", "1")

        assert done["state"] == "refused"
        assert "before" in done["reason"]
        assert done["candidate"]["metric"]["value"] < done["candidate"]["base_metric"]["value"]
        versions = signed_fleet.client.get("/api/bundles", dict[str, Any])["bundles"]
        assert "2.1.0" not in {item["version"] for item in versions}


def test_bad_updates_are_recorded_with_their_reason_and_a_round_without_good_ones_fails(
    signed_fleet: Fleet, digits: Digits, base: Path
) -> None:
    newest = newest_base(signed_fleet, digits, base, "3.0.0")
    with ExitStack() as stack:
        trainers = {
            "b-1": constant_trainer("b-1", step=0.0, samples=5),
            "b-2": poisoned("b-2"),
            "b-3": refusing("b-3"),
            "b-4": lambda *_: b"not a frame",
            "b-5": constant_trainer("somebody-else", step=0.0, samples=5),
        }
        join(signed_fleet, stack, newest, trainers)

        done = start(signed_fleet, digits, "--count", "2")

        assert done["state"] == "failed"
        (only,) = done["rounds"]
        assert (only["state"], only["accepted"]) == ("failed", 1)
        reasons = {device: why.split(":")[0] for device, why in only["refused"].items()}
        assert reasons == {
            "b-2": "not_finite",
            "b-3": "no_data",
            "b-4": "malformed",
            "b-5": "wrong_device",
        }


def test_a_round_is_said_again_where_a_broker_lost_an_answer(
    signed_fleet: Fleet, digits: Digits, base: Path
) -> None:
    newest = newest_base(signed_fleet, digits, base, "3.5.0")
    with ExitStack() as stack:
        trainers = {
            "l-1": constant_trainer("l-1", step=0.0, samples=5),
            "l-2": lost_once(constant_trainer("l-2", step=0.0, samples=5)),
        }
        join(signed_fleet, stack, newest, trainers)

        done = start(signed_fleet, digits, "--count", "1")

        (only,) = done["rounds"]
        assert (only["state"], only["accepted"], only["refused"]) == ("closed", 2, {})


def test_a_round_that_fails_names_who_never_answered(
    signed_fleet: Fleet, digits: Digits, base: Path
) -> None:
    newest = newest_base(signed_fleet, digits, base, "3.8.0")
    with ExitStack() as stack:
        trainers = {"n-1": constant_trainer("n-1", step=0.0, samples=5), "n-2": silent}
        join(signed_fleet, stack, newest, trainers)

        done = start(signed_fleet, digits, "--count", "1", "--timeout", "1")

        assert done["reason"] == "round 1 failed: 1 updates, 2 needed; no answer from n-2"


def test_a_series_that_a_restart_cut_off_says_so(
    signed_fleet: Fleet, digits: Digits, base: Path
) -> None:
    newest = newest_base(signed_fleet, digits, base, "4.0.0")
    with ExitStack() as stack:
        join(signed_fleet, stack, newest, {"r-1": lambda *_: None, "r-2": lambda *_: None})
        begun = edgekit(
            *("round", "start", "--model", "digits", "--source", str(digits.source)),
            *("--data", str(digits.data), "--profile", PROFILE, "--json"),
            *("--coordinator", signed_fleet.url),
        )
        number = json.loads(begun.stdout)["id"]

        def series() -> dict[str, Any]:
            return signed_fleet.client.get(f"/api/rounds/{number}", dict[str, Any])

        until(lambda: series()["rounds"])
        signed_fleet.restart(kill=True)
        until(lambda: series()["state"] == "failed")

        assert "restarted" in series()["reason"]
        assert series()["rounds"][0]["state"] == "failed"


def test_a_series_without_devices_is_refused_at_once(
    signed_fleet: Fleet, digits: Digits, base: Path
) -> None:
    newest_base(signed_fleet, digits, base, "5.0.0")
    done = edgekit(
        *("round", "start", "--model", "digits", "--source", str(digits.source)),
        *("--data", str(digits.data), "--profile", PROFILE, "--coordinator", signed_fleet.url),
    )

    assert done.returncode == 8
    assert "0 devices are online" in done.stderr


def newest_base(fleet: Fleet, digits: Digits, base: Path, version: str) -> Path:
    path = digits.renumber(base, version)
    published = edgekit("publish", str(path), "--coordinator", fleet.url)
    assert published.returncode == 0, published.stderr
    return path
