"""The whole story on one machine: build, serve, fleet, rollout, federated round.

Promise: every figure it tells was measured in this run, by the programs that users run. Each
chapter is a function that does one thing and returns what it found out.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgekit import signing
from edgekit_converters.demo import digits, photos, pictures, spoil
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.processes import Processes, edgekit, edgekitd, free_port, get, is_free

DEVICES = 3
CROPS = 28
ROUNDS = 5
SITE = "demo"
CLASSIFIER = "lite0"
DIGITS = "digits"

Say = Callable[[str, str], None]

_BUILD_LIMIT_S = 600.0
_STEP_LIMIT_S = 120.0
_DIGITS_RECIPE = """\
# A network this small has no use for int8: the build measures that and ships float.
training:
  loss: cross_entropy
  optimiser: sgd
  momentum: 0.0
budget:
  min_agreement: 0.9
"""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything of one demo is."""

    folder: Path
    coordinator_port: int
    broker_port: int

    @property
    def fleet(self) -> Path:
        """What `edgekit fleet init` makes."""
        return self.folder / "fleet"

    @property
    def key(self) -> Path:
        """The release key: it signs bundles, and the repository that devices believe."""
        return self.fleet / "release" / "release.key"

    @property
    def trust(self) -> Path:
        return self.fleet / "trust" / "release.pub"

    @property
    def coordinator(self) -> str:
        return f"http://127.0.0.1:{self.coordinator_port}"

    @property
    def broker(self) -> str:
        return f"mqtts://127.0.0.1:{self.broker_port}"

    @property
    def profile(self) -> str:
        """The generic profile of this machine: what is built for it can be measured here."""
        return f"generic-{platform.machine()}"

    def device_port(self, number: int) -> int:
        return self.coordinator_port + number


def choose_place(folder: Path) -> Place:
    """Put a demo into `folder`, on ports that nobody uses now."""
    while True:
        first = free_port()
        if all(is_free(first + number) for number in range(1, DEVICES + 1)):
            return Place(folder=folder, coordinator_port=first, broker_port=free_port())


def prepare(place: Place, processes: Processes, say: Say) -> None:
    """Write the models, the photographs and everybody's digits; make the fleet's keys."""
    write_lite0(place.folder / "lite0.onnx")
    photos.write_photos(place.folder, crops=CROPS)
    photos.write_pictures(place.folder / "pictures")
    digits.write_digits(place.folder / DIGITS, devices=DEVICES, seed=1)
    (place.folder / DIGITS / "recipe.yaml").write_text(_DIGITS_RECIPE, "utf-8")
    processes.run(
        "fleet",
        edgekit(
            *("fleet", "init", place.fleet, "--site", SITE, "--broker", place.broker),
            *("--repository", f"{place.coordinator}/repository/"),
            *("--coordinator", place.coordinator),
        ),
        timeout_s=_STEP_LIMIT_S,
    )
    size_mb = (place.folder / "lite0.onnx").stat().st_size / 1e6
    count = len(photos.photos())
    say(
        "models",
        f"EfficientNet-Lite0 ({size_mb:.1f} MB, ImageNet) with {count} photographs cut into "
        f"{count * CROPS} crops; a small network for digits that has never seen a 7, 8 or 9",
    )


def build(place: Place, processes: Processes, say: Say) -> dict[str, Any]:
    """Build the classifier for this machine, a Raspberry Pi 5 and a Jetson, in one command."""
    boards = [place.profile, "raspberry-pi-5", "jetson"]
    document = processes.run(
        "build",
        edgekit(
            *("build", place.folder / "lite0.onnx", "--name", CLASSIFIER, "--version", "1.0.0"),
            *(word for board in boards for word in ("--profile", board)),
            *("--data", place.folder / "photos.npz"),
            *("--key", place.key, "--out", place.folder / "bundles"),
        ),
        timeout_s=_BUILD_LIMIT_S,
    )
    built = {bundle["profile"]: bundle for bundle in document["bundles"]}
    for board in boards:
        say("build", f"{board}: {_describe(built[board])}")
    return built


def serve(place: Place, bundle: Path, processes: Processes, say: Say) -> dict[str, Any]:
    """Serve the bundle, send it a photograph and read the answer."""
    port = free_port()
    processes.start(
        "run",
        edgekit("run", bundle, "--listen", f"127.0.0.1:{port}", "--trust", place.trust),
    )
    url = f"http://127.0.0.1:{port}"
    processes.wait("run", "ready", lambda: get(f"{url}/v2/health/ready"), timeout_s=_STEP_LIMIT_S)
    answers = pictures.classify(_infer_url(port), photos.photos())
    right = sum(answer.right for answer in answers)
    best = answers[0]
    say(
        "serve",
        f"{right} of {len(answers)} photographs named right over HTTP, "
        f"{best.milliseconds:.1f} ms each at the median; the first is a {best.name!r} "
        f"({best.confidence:.0%})",
    )
    return {"right": right, "photographs": len(answers), "median_ms": best.milliseconds}


def start_fleet(place: Place, processes: Processes, say: Say) -> None:
    """Start a broker, a coordinator and three daemons, and wait until all are seen online."""
    state = place.folder / "state"
    listen = f"127.0.0.1:{place.broker_port}"
    processes.start(
        "broker",
        edgekit(
            *("broker", "--fleet", place.fleet, "--listen", listen),
            *("--state", state / "broker"),
        ),
    )
    processes.start(
        "coordinator",
        edgekit(
            *("coordinator", "--fleet", place.fleet, "--state", state / "coordinator"),
            *("--listen", f"127.0.0.1:{place.coordinator_port}"),
        ),
    )
    processes.wait(
        "coordinator",
        "ready",
        lambda: get(f"{place.coordinator}/api/devices"),
        timeout_s=_STEP_LIMIT_S,
    )
    for number in range(1, DEVICES + 1):
        config = _configure(place, number)
        _enroll(place, number, config, processes)
        processes.start(f"device-{number}", edgekitd(config))
    processes.wait(
        "coordinator",
        f"{DEVICES} devices online",
        lambda: len(_online(place, processes)) == DEVICES,
        timeout_s=_STEP_LIMIT_S,
    )
    say(
        "fleet",
        f"a broker, a coordinator and {DEVICES} daemons are up, each with a certificate of its "
        "own; what they are told and what they install is signed. All keys are in one folder "
        "here, a real fleet keeps root and release keys elsewhere",
    )


def roll_out(
    place: Place, bundle: Path, version: str, processes: Processes, say: Say
) -> dict[str, Any]:
    """Publish the classifier and move the fleet to it: one device first, then the rest."""
    shown = _rollout(place, bundle, CLASSIFIER, version, processes)
    moved = sum(device["outcome"] == "moved" for device in shown["devices"])
    answers = [
        answer
        for number in range(1, DEVICES + 1)
        for answer in pictures.classify(_infer_url(place.device_port(number)), photos.photos())
    ]
    right = sum(answer.right for answer in answers)
    say(
        "rollout",
        f"{CLASSIFIER} {version} reached {moved} of {DEVICES} devices in "
        f"{len(shown['waves'])} waves; each ran the golden inputs before it served, and together "
        f"they named {right} of {len(answers)} photographs right",
    )
    return {"moved": moved, "state": shown["state"], "right": right, "answers": len(answers)}


def refuse_a_bad_version(
    place: Place, bundle: Path, processes: Processes, say: Say
) -> dict[str, Any]:
    """Publish a version whose weights were damaged; the first device refuses it."""
    bad = place.folder / "bundles" / "lite0-1.1.0-damaged.edge"
    spoil.write_damaged(bundle, bad, version="1.1.0", key=signing.SigningKey.read(place.key))
    shown = _rollout(place, bad, CLASSIFIER, "1.1.0", processes)
    reason = next(device["reason"] for device in shown["devices"] if device["outcome"] == "failed")
    serving = sorted({_version(place, number, CLASSIFIER) for number in range(1, DEVICES + 1)})
    say(
        "rollout",
        f"{CLASSIFIER} 1.1.0, signed but with damaged weights: the first device refused it "
        f"({reason}), the rollout {shown['state']} itself, every device still serves "
        f"{', '.join(serving)}",
    )
    return {"state": shown["state"], "reason": reason, "serving": serving}


def learn(place: Place, processes: Processes, say: Say) -> dict[str, Any]:
    """Improve the digits by federated rounds; the result is built, signed and rolled out."""
    folder = place.folder / DIGITS
    common: list[str | Path] = [
        *("--profile", place.profile, "--data", folder / "heldout.npz"),
        *("--recipe", folder / "recipe.yaml"),
    ]
    first = processes.run(
        "build",
        edgekit(
            *("build", folder / "digits.onnx", "--name", DIGITS, "--version", "1.0.0", *common),
            *("--key", place.key, "--out", place.folder / "bundles"),
        ),
        timeout_s=_BUILD_LIMIT_S,
    )
    _rollout(place, Path(first["bundles"][0]["path"]), DIGITS, "1.0.0", processes)
    series = processes.run(
        "round",
        edgekit(
            *("round", "start", "--model", DIGITS, "--source", folder / "digits.onnx", *common),
            *("--count", str(ROUNDS), "--epochs", "5", "--batch-size", "16"),
            *("--learning-rate", "0.1", "--min-updates", str(DEVICES)),
            *("--coordinator", place.coordinator, "--rollout", "--watch"),
        ),
        timeout_s=_BUILD_LIMIT_S,
    )
    candidate = series["candidate"]
    version = candidate["version"]
    processes.wait(
        "coordinator",
        f"{DIGITS} {version} on every device",
        lambda: all(_version(place, number, DIGITS) == version for number in range(1, DEVICES + 1)),
        timeout_s=_STEP_LIMIT_S,
    )
    before, after = candidate["base_metric"]["value"], candidate["metric"]["value"]
    say(
        "learn",
        f"{ROUNDS} federated rounds on {DEVICES} devices: top-1 on held-out digits "
        f"{before:.3f} -> {after:.3f}; only weights travelled, {_kilobytes(series)} up in all",
    )
    say("learn", f"{DIGITS} {version} was built, gated, signed and serves on every device")
    return {"before": before, "after": after, "version": version}


def _infer_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v2/models/{CLASSIFIER}/infer"


def _configure(place: Place, number: int) -> Path:
    """The configuration of one daemon."""
    folder = place.folder / "devices" / f"device-{number}"
    folder.mkdir(parents=True)
    config = folder / "device.toml"
    config.write_text(
        f"""\
[device]
site = "{SITE}"
id = "device-{number}"
profile = "{place.profile}"

[state]
folder = "{folder / "state"}"

[serve]
listen = "127.0.0.1:{place.device_port(number)}"

[trust]
keys = ["{place.trust}"]

[fleet]
identity = "{folder / "state" / "identity"}"
telemetry_interval_s = 2

[update]
confirm_after_s = 2

[canary]
idle_s = 2

[training]
data = "{place.folder / DIGITS / f"device-{number}.npz"}"
models = ["{DIGITS}"]
""",
        "utf-8",
    )
    return config


def _enroll(place: Place, number: int, config: Path, processes: Processes) -> None:
    """A key and a certificate for one device, against a token that works once."""
    tokens = place.folder / "tokens" / f"device-{number}"
    processes.run(
        "token",
        edgekit("fleet", "token", place.fleet, f"{SITE}/device-{number}", "--out", tokens),
        timeout_s=_STEP_LIMIT_S,
    )
    (token,) = tokens.iterdir()
    processes.run(
        "enroll",
        edgekit(
            *("device", "enroll", "--token-file", token, "--config", config),
            *("--coordinator", place.coordinator),
        ),
        timeout_s=_STEP_LIMIT_S,
    )


def _rollout(
    place: Place, bundle: Path, model: str, version: str, processes: Processes
) -> dict[str, Any]:
    """Publish a bundle, roll it out to one device and then all, and wait until that has ended."""
    at = ("--coordinator", place.coordinator)
    processes.run(
        "publish", edgekit("publish", bundle, "--fleet", place.fleet), timeout_s=_STEP_LIMIT_S
    )
    processes.wait(
        "coordinator",
        f"{model} {version} among the bundles",
        lambda: _is_published(place, model, version),
        timeout_s=_STEP_LIMIT_S,
    )
    created = processes.run(
        "rollout",
        edgekit(
            *("rollout", "create", "--model", model, "--version", version),
            *("--wave", "1", "--wave", "100%", *at),
        ),
        timeout_s=_STEP_LIMIT_S,
    )

    def ended() -> dict[str, Any] | None:
        shown = get(f"{place.coordinator}/api/rollouts/{created['id']}")
        return shown if shown and shown["state"] in ("done", "halted") else None

    shown: dict[str, Any] = processes.wait(
        "coordinator", f"the rollout of {model} {version}", ended, timeout_s=_STEP_LIMIT_S
    )
    return shown


def _is_published(place: Place, model: str, version: str) -> bool:
    found = get(f"{place.coordinator}/api/bundles") or {"bundles": []}
    return any((b["name"], b["version"]) == (model, version) for b in found["bundles"])


def _online(place: Place, processes: Processes) -> list[str]:
    shown = processes.run(
        "fleet",
        edgekit("fleet", "devices", "--coordinator", place.coordinator),
        timeout_s=_STEP_LIMIT_S,
    )
    return [device["id"] for device in shown["devices"] if device["online"]]


def _version(place: Place, number: int, model: str) -> str:
    """The version of `model` that a device serves now; "none" where it serves none."""
    found = get(f"http://127.0.0.1:{place.device_port(number)}/v2/models/{model}")
    return str(max(found["versions"])) if found else "none"


def _describe(bundle: dict[str, Any]) -> str:
    """The default variant of a bundle in one line, each figure with how it was obtained."""
    variant: dict[str, Any] = bundle["variants"][0]
    words = [f"{variant['precision']} {variant['size_bytes'] / 1e6:.1f} MB"]
    if variant["speedup"] is not None:
        words.append(
            f"{variant['speedup']:.2f}x faster than float ({variant['latency_ms']['p50']:.1f} ms)"
        )
    else:
        words.append("no speed figure without the board")
    if variant["agreement"] is not None:
        proof = variant["figure_evidence"]["agreement"]
        words.append(f"{variant['agreement']:.3f} agree with float ({proof})")
    return f"{', '.join(words)}; artefact {variant['evidence']}"


def _kilobytes(series: dict[str, Any]) -> str:
    rounds: Sequence[dict[str, Any]] = series["rounds"]
    return f"{sum(shown['up_bytes'] for shown in rounds) / 1000:.0f} kB"
