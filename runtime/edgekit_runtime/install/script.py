"""Script: what installs a wheelhouse on a board that has a Python and nothing else."""

from __future__ import annotations

from edgekit_runtime.install.wheels import Goal

_SCRIPT = """\
#!/bin/sh
# Installs edgekit from this folder, without internet, into an environment of its own.
# usage: sh install.sh [FOLDER]      PYTHON=... names another Python {python}
set -eu
target=${{1:-/opt/edgekit}}
case $target in /*) ;; *) target=$PWD/$target ;; esac
cd -- "$(dirname -- "$(readlink -f -- "$0")")"
python=${{PYTHON:-python{python}}}
if ! command -v "$python" >/dev/null; then
  python=python3
fi
found=$("$python" -c 'import platform as p; print(p.machine(), *p.python_version_tuple()[:2])')
if [ "$found" != "{machine} {spaced}" ]; then
  echo "these wheels are for {machine} and Python {python}; $python here is: $found" >&2
  exit 2
fi
# Nothing damaged on its way is installed.
sha256sum --check --quiet SHA256SUMS
"$python" -m venv --without-pip{system} "$target"
"$target/bin/python" {pip}/pip --isolated --disable-pip-version-check install --quiet \\
  --no-index --find-links wheels --require-hashes --requirement requirements.txt
cp profile.json "$target/profile.json"
echo "edgekit is in $target/bin; then, as root:"
echo "  $target/bin/edgekit device install --profile $target/profile.json --site SITE --id ID"
"""


def install_script(goal: Goal, *, pip: str) -> str:
    """A shell script for the folder of a wheelhouse.

    Args:
        pip: pip's own wheel in that folder; a Python runs it as it is.
    """
    return _SCRIPT.format(
        system=" --system-site-packages" if goal.uses_system else "",
        machine=goal.machine,
        python=goal.python,
        spaced=goal.python.replace(".", " "),
        pip=pip,
    )
