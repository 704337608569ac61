#!/bin/sh
# Runs COMMAND where the kernel starts programs of ARCH with qemu, also inside of a chroot.
#
# The rule is Debian's own under a name of this run; it is taken back at the end, and the mounts are
# those of a namespace that ends with COMMAND.
# usage: emulated.sh arm64 COMMAND...     as root
set -eu
if [ "$1" != --inside ]; then
  exec unshare --mount -- "$0" --inside "$@"
fi
case $2 in
  arm64) machine=aarch64 ;;
  *) echo "programs of $2 are not emulated" >&2; exit 2 ;;
esac
shift 2
rule=/usr/lib/binfmt.d/qemu-$machine.conf
if [ ! -r "$rule" ]; then
  echo "qemu-$machine-static is not here: make system-deps" >&2
  exit 2
fi
folder=/proc/sys/fs/binfmt_misc
name=edgekit-$$
mount -t binfmt_misc none "$folder"
trap 'echo -1 >"$folder/$name"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
sed "s/^:[^:]*:/:$name:/" "$rule" >"$folder/register"
"$@"
