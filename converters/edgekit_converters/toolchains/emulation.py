"""Emulation: a tool chain whose Python is an Arm board's, run here by qemu's user mode.

Its folder holds Debian's arm64 Python with the libraries that wheels expect (`root/`) and a script
in place of an interpreter, so that it is driven like any other. qemu computes each instruction as
the board would, which shows what Arm kernels answer and not how fast. Debian's packages come from
the sources that this machine trusts, checked by apt; nothing outside of the folder changes.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit import storage
from edgekit.errors import BuildError
from edgekit_converters.toolchains import ToolChain

Run = Callable[[Sequence[str]], None]

# Linux's name of the machine, and Debian's.
_DEBIAN = {"aarch64": "arm64"}
_PROGRAMS = ("apt-get", "dpkg-deb")
_PACKAGES = (
    "gcc-12-base",
    "libbz2-1.0",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libssl3",
    "libstdc++6",
    "python3.11-minimal",
    "zlib1g",
)
# qemu's own choice, `max`, has every extension there is: its vectors of variable length are slower
# by ten times, and no board that profiles name has them. This one is of Raspberry Pi 5 and RK3588.
CPU = "cortex-a76"
# What that CPU says of itself. Engines crash without: they choose kernels by it.
_CPUINFO = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
_CPU_LISTS = ("kernel_max", "online", "possible", "present")
# Paths of the folder are found from the script's own: the folder is moved when it is whole.
_SCRIPT = """\
#!/bin/sh
# Runs the Python of this folder, whose instructions are those of {machine}.
home=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
qemu=$(command -v {static} || command -v {dynamic}) || {{
  echo "{static} is not on PATH: apt-get install {package}" >&2
  exit 127
}}
exec "$qemu" -cpu {cpu} -L "$home/root" "$home/root/usr/bin/python{python}" "$@"
"""
# Read after the machine's own settings, of which proxies and sources stay.
_APT = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "{debian}";
APT::Architectures {{ "{debian}"; }};
APT::Sandbox::User "{user}";
Acquire::Languages "none";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""
_QEMU_PACKAGE = "qemu-user-static"


def missing(chain: ToolChain) -> tuple[str, str] | None:
    """What keeps an emulated tool chain from running here, and the command that adds it."""
    assert chain.machine is not None
    if any(map(shutil.which, _emulators(chain.machine))):
        return None
    static, _ = _emulators(chain.machine)
    return f"{static}, which runs it, is not on PATH", f"apt-get install {_QEMU_PACKAGE}"


def check(chain: ToolChain) -> None:
    """Raise `BuildError` where an emulated tool chain cannot be installed here."""
    if (found := missing(chain)) is not None:
        detail, command = found
        raise BuildError(f"tool chain {chain.name}: {detail}", hint=command)
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            raise BuildError(
                f"tool chain {chain.name} is made of Debian packages, and {program} is not here",
                hint="install it on Debian 12, or in a container of it",
            )


def make(chain: ToolChain, folder: Path, *, run: Run) -> None:
    """Fill the folder of an emulated tool chain with its Python, still without wheels.

    Args:
        run: runs a command, raising `BuildError` where it fails.
    """
    assert chain.machine is not None
    scratch = folder / "apt"
    archives = scratch / "debs"
    for made in ("state/lists/partial", "cache/archives/partial", "debs"):
        storage.make_folder(scratch / made)
    settings = scratch / "settings"
    storage.write(scratch / "status", b"")
    # Without root apt has nobody else to be.
    user = "root" if os.geteuid() == 0 else ""
    text = _APT.format(debian=_DEBIAN[chain.machine], folder=scratch.absolute(), user=user)
    storage.write(settings, text.encode())
    apt = "apt-get", "--quiet=2", f"--config-file={settings.absolute()}"
    run([*apt, "update"])
    # It downloads into the folder where it is started.
    inside = "env", f"--chdir={archives.absolute()}"
    run([*inside, *apt, "download", *_PACKAGES])
    root = folder / "root"
    for archive in sorted(archives.glob("*.deb")):
        run(["dpkg-deb", "--extract", str(archive.absolute()), str(root.absolute())])
    shutil.rmtree(scratch)
    describe_cpu(root)
    _write_script(chain, folder)


def packages_of(chain: ToolChain, folder: Path) -> Path:
    """Where the Python of an emulated tool chain looks for packages."""
    return folder / f"root/usr/local/lib/python{chain.python}/dist-packages"


def describe_cpu(root: Path) -> None:
    """Put the files into a root that engines read of the CPU; this machine's would mislead them."""
    files = {"proc/cpuinfo": _CPUINFO}
    files |= {f"sys/devices/system/cpu/{name}": "0\n" for name in _CPU_LISTS}
    for name, text in files.items():
        storage.write(root / name, text.encode())


def is_needed_for(architecture: str) -> bool:
    """Whether programs of an architecture have to be emulated here, and can be."""
    return architecture in _DEBIAN and architecture != platform.machine()


def _write_script(chain: ToolChain, folder: Path) -> None:
    assert chain.machine is not None
    static, dynamic = _emulators(chain.machine)
    text = _SCRIPT.format(
        machine=chain.machine,
        static=static,
        dynamic=dynamic,
        package=_QEMU_PACKAGE,
        cpu=CPU,
        python=chain.python,
    )
    script = folder / "bin" / "python"
    storage.write(script, text.encode(), mode=0o755)


def _emulators(machine: str) -> tuple[str, str]:
    """Debian's names of the program, linked statically and not; either does."""
    return f"qemu-{machine}-static", f"qemu-{machine}"
