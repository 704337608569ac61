#!/bin/sh
# Installs the package of FOLDER in a clean Debian that debootstrap makes, and runs its tests. With
# `systemd` that Debian is booted with its own systemd, in namespaces (systemd-nspawn). A package for
# another machine (DEB_ARCH) is tried under emulation: what it answers counts, how fast does not.
# usage: test.sh FOLDER PYTEST [systemd]     as root
set -eu
arch=${DEB_ARCH:-$(dpkg --print-architecture)}
there() { "$@"; }
if [ "$arch" != "$(dpkg --print-architecture)" ]; then
  if [ -n "${3:-}" ]; then
    echo "systemd is booted on the machine's own architecture only" >&2
    exit 2
  fi
  here=$(dirname -- "$(readlink -f -- "$0")")
  there() { "$here/emulated.sh" "$arch" "$@"; }
  echo "$arch is emulated by qemu: no time that is shown here is a board's" >&2
fi
package=$(ls -t "$1"/edgekit_*_"$arch".deb | head -n 1)
for program in debootstrap ${3:+systemd-nspawn}; do
  if ! command -v "$program" >/dev/null; then
    echo "$program is not here: make system-deps" >&2
    exit 2
  fi
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A board that is booted has no network, so what the package depends on is there before.
there debootstrap --arch="$arch" --variant=minbase \
  ${3:+--include=adduser,libstdc++6,python3,systemd-sysv} bookworm "$work/root" >"$work/log" || {
  tail -n 20 "$work/log" >&2
  exit 1
}
EDGEKIT_DEB=$(readlink -f -- "$package")
export EDGEKIT_DEB
if [ -n "${3:-}" ]; then
  EDGEKIT_SYSTEMD_ROOT=$work/root "$2" tests/system/test_systemd.py
  exit
fi
if [ "$arch" = arm64 ]; then
  export EDGEKIT_WHEELHOUSE="$work/wheelhouse"
  "$(dirname -- "$2")/edgekit" device wheelhouse --profile raspberry-pi-5 --out "$EDGEKIT_WHEELHOUSE"
fi
export EDGEKIT_DEB_ROOT="$work/root"
there "$2" tests/system/test_deb.py
