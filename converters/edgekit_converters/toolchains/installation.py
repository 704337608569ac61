"""Installation: making the environment of a tool chain, whole or not at all.

It is filled beside its place, tried, moved there, and only then marked `ready`; one installation of
a tool chain runs at a time. uv takes exactly the files that the lock names by their hashes, from
whichever index the workstation is set to, and runs nobody's build script.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from edgekit import storage
from edgekit.errors import BuildError, StorageError
from edgekit_converters.toolchains import ToolChain, emulation, environments, toolchain, uv

Say = Callable[[str], None]

_CHECK_LIMIT_S = 300.0
# Room beyond what is installed: uv unpacks wheels in its cache before it links them.
_SPARE_MB = 256
_LOCKED = ("--require-hashes", "--only-binary=:all:", "--no-progress")
# How uv and apt begin a line that says what is wrong.
_ERRORS = ("error:", "E: ")
# No name of a tool chain has a tilde in it.
_NEW, _OLD = "~new-", "~old-"


def install(name: str, *, say: Say) -> Path:
    """Make a tool chain ready, if it is not, or has been damaged since; its interpreter.

    Another installation of the same one is waited for.

    Args:
        say: is told what is done now.

    Raises:
        ToolChainMissing: it is a program, which only its vendor installs.
        BuildError: uv, its Python or a new enough glibc is missing, or uv refused.
        StorageError: the disk is too full, or the folder cannot be written.
    """
    chain = toolchain(name)
    if chain.python is None:
        return environments.python_of(name)
    with _alone(name, say=say) as lock:
        if environments.state(name).status != "ready" or not _works(chain, say=say):
            _sweep(name)
            _check_machine(chain)
            _install(chain, lock=lock, say=say)
    return environments.python_of(name)


def remove(name: str) -> None:
    """Remove a tool chain's environment, and what interrupted installations left of it."""
    with _alone(toolchain(name).name, say=lambda _: None):
        _sweep(name)
        _discard(environments.home() / name)


def _install(chain: ToolChain, *, lock: int, say: Say) -> None:
    home = environments.home()
    run = partial(_run, chain=chain, lock=lock, say=say)
    digest = environments.sha256(chain.lock_file)
    try:
        staged = Path(tempfile.mkdtemp(prefix=f".{chain.name}{_NEW}", dir=home))
        try:
            if chain.machine is None:
                _fill(chain, staged, run=run)
            else:
                say(f"{chain.name}: fetching Debian packages")
                _fill_emulated(chain, staged, run=run)
            say(f"{chain.name}: trying it")
            _try(chain, environments.python_in(staged))
            # What `ready` vouches for is on disk before it is.
            os.sync()
            folder = home / chain.name
            _discard(folder)
            staged.rename(folder)
            storage.write(folder / environments.READY, f"{digest}\n".encode())
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as e:
        raise StorageError(
            f"tool chain {chain.name} cannot be installed below {home}: {e.strerror or e}",
            hint="check free space and permissions, or set EDGEKIT_TOOLCHAINS to another folder",
        ) from e


def _fill(chain: ToolChain, folder: Path, *, run: emulation.Run) -> None:
    """Make an environment for a Python of this machine."""
    assert chain.python is not None
    interpreter = str(_interpreter(chain.python, chain=chain))
    # Its scripts find their interpreter wherever the folder lies: it is moved when it is whole.
    make = "venv", "--quiet", "--relocatable", "--allow-existing"
    run([*uv.command(), *make, "--python", interpreter, str(folder)])
    python = str(environments.python_in(folder))
    requirements = str(chain.lock_file.absolute())
    run([*uv.command(), "pip", "sync", *_LOCKED, "--python", python, requirements])


def _fill_emulated(chain: ToolChain, folder: Path, *, run: emulation.Run) -> None:
    """Make an environment for a Python of another machine, which uv cannot start."""
    emulation.make(chain, folder, run=run)
    where = [
        f"--python={sys.executable}",
        f"--python-version={chain.python}",
        f"--python-platform={chain.platform}",
        f"--target={emulation.packages_of(chain, folder)}",
    ]
    requirements = str(chain.lock_file.absolute())
    run([*uv.command(), "pip", "install", *_LOCKED, "--no-deps", *where, "-r", requirements])


def _run(command: Sequence[str], *, chain: ToolChain, lock: int, say: Say) -> None:
    """Run what installs, telling what it does."""
    lines = []
    with subprocess.Popen(
        command,
        # Settings of uv in the current folder are a project's, not a tool chain's.
        cwd=environments.home(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Were edgekit killed, it would go on: the lock is held until it has ended too.
        pass_fds=(lock,),
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                lines.append(line.strip())
                # Every package has a line in the end that begins so.
                if lines[-1] and not lines[-1].startswith("+ "):
                    say(f"{chain.name}: {lines[-1]}")
            process.wait()
        finally:
            process.kill()
    if process.returncode != 0:
        raise BuildError(
            f"tool chain {chain.name} could not be installed: {_refusal(lines)}",
            hint="check the network, and the package index that"
            f" {'uv' if chain.machine is None else 'uv and apt'} is set to",
        )


def _refusal(lines: Sequence[str]) -> str:
    """What uv or apt says is wrong, with its causes, in one line."""
    first = next((i for i, line in enumerate(lines) if line.startswith(_ERRORS)), -3)
    said = "; ".join(filter(None, lines[first:]))
    return said.removeprefix("error: ").removeprefix("E: ") or "nothing was said why"


def _check_machine(chain: ToolChain) -> None:
    """Refuse what cannot end well before anything is downloaded."""
    if chain.machine is not None:
        emulation.check(chain)
    library, version = platform.libc_ver()
    if library == "glibc" and _numbers(version) < _numbers(chain.glibc):
        raise BuildError(
            f"tool chain {chain.name} needs glibc {chain.glibc}, this machine has {version}",
            hint="build on a newer distribution, or in a container of one",
        )
    free_mb = shutil.disk_usage(environments.home()).free >> 20
    if free_mb < chain.size_mb + _SPARE_MB:
        raise StorageError(
            f"tool chain {chain.name} takes {chain.size_mb} MB and {_SPARE_MB} MB to work in,"
            f" {environments.home()} has {free_mb} MB left",
            hint="free space, or set EDGEKIT_TOOLCHAINS to a folder on a larger disk",
        )


def _interpreter(version: str, *, chain: ToolChain) -> Path:
    found = uv.find_python(version)
    if found is None:
        raise BuildError(
            f"tool chain {chain.name} needs Python {version}, which is not on this machine",
            hint=uv.install_python(version),
        )
    return found


def _works(chain: ToolChain, *, say: Say) -> bool:
    """Whether what counts as ready can still be imported."""
    say(f"{chain.name}: trying it")
    try:
        _try(chain, environments.python_in(environments.home() / chain.name))
    except (BuildError, OSError) as e:
        say(f"{chain.name}: damaged, so it is made again: {e}")
        return False
    return True


def _try(chain: ToolChain, python: Path) -> None:
    """Import what the tool chain is for: a system library that is missing shows itself here."""
    if not chain.imports:
        return
    try:
        subprocess.run(
            [str(python), "-I", "-c", f"import {', '.join(chain.imports)}"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_CHECK_LIMIT_S,
            check=True,
        )
    except subprocess.TimeoutExpired as e:
        raise BuildError(
            f"tool chain {chain.name} was not imported within {_CHECK_LIMIT_S:g} s"
        ) from e
    except subprocess.CalledProcessError as e:
        last = (e.stderr.strip().splitlines() or [f"exit code {e.returncode}"])[-1]
        raise BuildError(
            f"tool chain {chain.name} was installed and cannot be imported: {last}",
            hint="install the system library that it names, then try again",
        ) from e


@contextmanager
def _alone(name: str, *, say: Say) -> Iterator[int]:
    """Hold the lock of a tool chain's folder; the kernel lets go of it however this ends."""
    home = environments.home()
    storage.make_folder(home)
    try:
        file = (home / f".{name}.lock").open("wb")
    except OSError as e:
        raise StorageError(
            f"{home} cannot be written: {e.strerror}",
            hint="set EDGEKIT_TOOLCHAINS to another folder",
        ) from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: waiting for another installation of it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _sweep(name: str) -> None:
    """Remove what interrupted installations and removals left."""
    for kind in (_NEW, _OLD):
        for left in environments.home().glob(f".{name}{kind}*"):
            shutil.rmtree(left, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove an environment; it stops to count before the first file of it goes."""
    if folder.exists():
        going = Path(tempfile.mkdtemp(prefix=f".{folder.name}{_OLD}", dir=folder.parent))
        folder.rename(going / folder.name)
        shutil.rmtree(going, ignore_errors=True)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
