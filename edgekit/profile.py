"""DeviceProfile: what a board is and can run, with a source for each claim.

Profiles are YAML files, one board a file, that may extend another. A resolved profile is plain
data; it travels in the manifest as JSON, so a board needs no YAML.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from edgekit import documents
from edgekit.errors import ProfileError
from edgekit.structs import Strict

Accelerator = Literal["cpu", "gpu", "npu", "tpu"]
Architecture = Literal["x86_64", "aarch64", "armv7l", "cortex-m"]
EngineName = Literal[
    "onnxruntime", "litert", "tflite-runtime", "tflite-micro", "openvino", "rknn", "hailo"
]
Evidence = Literal["executed", "simulated", "estimated", "linted"]
RuntimeKind = Literal["native", "container", "artefact-only"]
Scalar = str | int | float | bool
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}\Z")]
Text = Annotated[str, msgspec.Meta(min_length=1)]
PythonVersion = Annotated[str, msgspec.Meta(pattern=r"^3\.\d+\Z")]

MAX_EXTENDS = 8


class Provider(Strict, frozen=True, kw_only=True):
    """One execution provider or delegate, in order of preference, with its options."""

    name: str
    options: dict[str, Scalar] = {}


class EngineSpec(Strict, frozen=True, kw_only=True):
    """One engine of the board, as its vendor or the wheel index ships it.

    Attributes:
        version: the version on the board, a prefix such as `1.23` is enough.
        precisions: what the engine takes, in the order to prefer; `int8-qdq-u8s8` is QDQ with
            unsigned activations and signed weights, `int8-qdq-s8s8` is symmetric, `int8-qdq-u16s8`
            has activations of 16 bits; `int8` and `int16x8` (activations of 16 bits) are of the
            engine's own format; `int8-dynamic` takes the ranges of activations while it runs,
            `int4-weights` stores only weights in 4 bits.
        max_onnx_ir: highest ONNX IR version that a build writes for it; this version loads it.
        max_opset: highest opset of the default domain that a build writes for it.
        threads: threads within one operator; 1 where several models share the cores.
        wheels: where the board gets this engine from.
    """

    name: EngineName
    version: Text
    accelerator: Accelerator = "cpu"
    providers: tuple[Provider, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    max_onnx_ir: int = 10
    max_opset: int = 21
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    wheels: str = "PyPI"


class Container(Strict, frozen=True, kw_only=True):
    """What the daemon runs in where the board's own Python is too old for it.

    Attributes:
        image: the image's reference, with a tag.
        python: the Python inside.
    """

    image: Text
    python: PythonVersion


class Identify(Strict, frozen=True, kw_only=True):
    """Texts by which the board is recognised, each part of what Linux says; `None` asks nothing.

    Without any of them every machine of the architecture counts as the board.

    Attributes:
        device_tree_model: in `/proc/device-tree/model`, the board's name.
        device_tree_compatible: in `/proc/device-tree/compatible`, which names the SoC too.
        cpu_model: in a `model name` of `/proc/cpuinfo`, for machines without a device tree.
    """

    device_tree_model: str | None = None
    device_tree_compatible: str | None = None
    cpu_model: str | None = None


class Placement(Strict, frozen=True, kw_only=True):
    """What must run on the accelerator.

    Attributes:
        min_accelerator_macs: least share (0 to 1) of MACs on the variant's accelerator.
        fallback_ops: operators that may run on the CPU beside it.
        on_fallback: what a device does with a variant that runs elsewhere: `refuse` it, or serve it
            and `alarm`. Left out for `refuse`, so that older readers of a manifest take it.
    """

    min_accelerator_macs: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    fallback_ops: tuple[str, ...] = ()
    on_fallback: Literal["refuse", "alarm"] | UnsetType = UNSET


class Quality(Strict, frozen=True, kw_only=True):
    """What of this profile was run, how, and when.

    Attributes:
        evidence: the best proof there is that an artefact for this profile works.
        checked: date of the last check, ISO 8601.
        verified: what was run or read, one sentence each.
        unverified: what nobody has run yet, one sentence each.
        sources: where the facts come from.
    """

    evidence: Evidence
    checked: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}\Z")]
    verified: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    sources: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class DeviceProfile(Strict, frozen=True, kw_only=True):
    """One board, resolved (`extends` applied). docs/profiles.md explains each field.

    Attributes:
        architecture: of the instructions that artefacts are made for.
        runtime: where the daemon runs: on the board's own system, in a container there, or
            nowhere (`artefact-only`: a build gives the file, another program runs it).
        python: what the board's own system ships; `None` where it has none.
        container: what the daemon runs in where `runtime` is `container`.
        memory_mb: of the smallest model of the board that the profile stands for.
    """

    name: Name
    title: Text
    architecture: Architecture
    engines: Annotated[tuple[EngineSpec, ...], msgspec.Meta(min_length=1)]
    quality: Quality
    runtime: RuntimeKind = "native"
    identify: Identify = Identify()
    os: str | None = None
    python: PythonVersion | None = None
    container: Container | None = None
    drivers: dict[str, str] = {}
    memory_mb: Annotated[int, msgspec.Meta(gt=0)] | None = None
    cores: Annotated[int, msgspec.Meta(gt=0)] | None = None
    power_modes: tuple[str, ...] = ()
    placement: Placement = Placement()
    notes: tuple[str, ...] = ()

    @property
    def daemon_python(self) -> str | None:
        """The Python that the daemon runs on; `None` where it does not run or is not known."""
        return self.python if self.container is None else self.container.python

    def is_this_machine(self) -> bool:
        """Whether this machine is the board, so that a latency measured here is the board's."""
        asked = self.identify
        return platform.machine() == self.architecture and all(
            text is None or text in told(Path(file))
            for text, told, file in (
                (asked.device_tree_model, _text, "/proc/device-tree/model"),
                (asked.device_tree_compatible, _text, "/proc/device-tree/compatible"),
                (asked.cpu_model, _cpu_models, "/proc/cpuinfo"),
            )
        )


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _cpu_models(path: Path) -> str:
    lines = _text(path).splitlines()
    return "\n".join(line for line in lines if line.startswith("model name"))


def search_path(extra: Sequence[Path] = ()) -> list[Path]:
    """Folders that hold profiles: the given ones, then those that ship with edgekit."""
    here = Path(__file__).parent
    shipped = here / "device_profiles"
    return [*extra, shipped if shipped.is_dir() else here.parent / "device_profiles"]


def names(*, folders: Sequence[Path] = ()) -> list[str]:
    """Every profile found, sorted."""
    return sorted({file.stem for folder in search_path(folders) for file in folder.glob("*.yaml")})


def find(name: str, *, folders: Sequence[Path] = ()) -> DeviceProfile:
    """The resolved profile called `name`; a path to a YAML file is taken as it is.

    Raises:
        ProfileError: there is none, its file breaks a rule of YAML, profiles extend each other in
            a circle, or a field is wrong or unknown.
    """
    return resolve(name, _tree(name, folders=folders, seen=()))


def read(path: Path) -> DeviceProfile:
    """The resolved profile in one file."""
    return resolve(str(path), merged(path))


def merged(path: Path) -> dict[str, Any]:
    """The tree of one file laid over those that it extends, its fields not yet checked."""
    return _tree(str(path.absolute()), folders=(), seen=())


def resolve(name: str, tree: Mapping[str, Any]) -> DeviceProfile:
    """Check a merged tree, raising `ProfileError` that names the wrong field."""
    try:
        return msgspec.convert(tree, DeviceProfile)
    except msgspec.ValidationError as e:
        raise ProfileError(f"profile {name} is not valid: {e}") from e


def _tree(name: str, *, folders: Sequence[Path], seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen or len(seen) >= MAX_EXTENDS:
        raise ProfileError(f"profiles extend each other in a circle: {' -> '.join([*seen, name])}")
    path = _path(name, folders)
    own = _load(path)
    if "name" not in own:
        raise ProfileError(f"profile {path} has no name")
    parent = own.pop("extends", None)
    if parent is None:
        return own
    if not isinstance(parent, str):
        raise ProfileError(f"profile {name}: extends must name one profile, not {parent!r}")
    # A profile finds its parent beside itself, wherever it lies.
    return merge(_tree(parent, folders=[path.parent, *folders], seen=(*seen, name)), own)


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `child` over `parent`: mappings merge key by key, everything else is replaced.

    The quality record is never inherited: what was run on one board says nothing of another.
    """
    merged = {key: value for key, value in parent.items() if key != "quality"}
    for key, value in child.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = merge(below, value) if both and isinstance(below, dict) else value
    return merged


def _path(name: str, folders: Sequence[Path]) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    for folder in search_path(folders):
        file = folder / f"{name}.yaml"
        if file.is_file():
            return file
    raise ProfileError(
        f"there is no profile called {name!r}",
        hint=f"edgekit profiles list shows them: {', '.join(names(folders=folders))}",
    )


def _load(path: Path) -> dict[str, Any]:
    tree = documents.read(path, what="profile", error=ProfileError)
    if not isinstance(tree, dict):
        raise ProfileError(f"profile {path} must be a mapping, it is a {type(tree).__name__}")
    return tree
