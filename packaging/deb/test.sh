#!/bin/sh
# Installs the package of FOLDER in a clean Debian that debootstrap makes, and runs its tests.
# usage: test.sh FOLDER PYTEST     as root
set -eu
arch=$(dpkg --print-architecture)
package=$(ls -t "$1"/edgekit_*_"$arch".deb | head -n 1)
if ! command -v debootstrap >/dev/null; then
  echo "debootstrap is not here: apt-get install debootstrap" >&2
  exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase bookworm "$work/root" >"$work/log" || {
  tail -n 20 "$work/log" >&2
  exit 1
}
EDGEKIT_DEB=$(readlink -f -- "$package") EDGEKIT_DEB_ROOT=$work/root "$2" tests/system/test_deb.py
