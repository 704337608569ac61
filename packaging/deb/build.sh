#!/bin/sh
# Makes a Debian package for bookworm (Python 3.11) out of a wheelhouse; nothing of it runs here, so
# a package for arm64 is made on any machine.
#
# Layout: a private environment in /opt/edgekit, of Debian's own interpreter (its security updates
# count) and wheels at the versions that were resolved together. Debian's numpy, click and the like
# are older than the engines need, and stay as they are for the system's other programs.
#
# usage: build.sh [amd64|arm64] [FOLDER]     from the repository, after `make .venv/ready`
set -eu
arch=${1:-$(dpkg --print-architecture)}
out=${2:-dist}
case $arch in
  amd64) profile=generic-x86_64 ;;
  arm64) profile=generic-aarch64 ;;
  *) echo "no engine has wheels for Debian's $arch" >&2; exit 2 ;;
esac
here=$(dirname -- "$(readlink -f -- "$0")")
PATH=$PATH:$(readlink -f -- "$here/../../.venv/bin")
edgekit=${EDGEKIT:-$here/../../.venv/bin/edgekit}
version=$("$edgekit" --version | sed 's/.* //')-1
mkdir -p "$out"
out=$(readlink -f -- "$out")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
root=$work/root
site=$root/opt/edgekit/lib/python3.11/site-packages

"$edgekit" device wheelhouse --profile "$profile" --python 3.11 --glibc 2.36 --out "$work/wheels"
case $arch in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac
mkdir -p "$site" "$root/opt/edgekit/bin" "$root/usr/bin" "$root/DEBIAN"
uv pip install --quiet --target "$site" --no-index --find-links "$work/wheels/wheels" \
  --require-hashes --no-deps --only-binary :all: --link-mode copy \
  --python-version 3.11 --python-platform "$machine-manylinux_2_36" \
  --requirement "$work/wheels/requirements.txt"
# Programs of the packages have this machine's interpreter in their first line.
rm -rf "$site/bin" "$site/.lock"

# What `python3 -m venv` writes on the board.
printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n' \
  > "$root/opt/edgekit/pyvenv.cfg"
ln -s /usr/bin/python3.11 "$root/opt/edgekit/bin/python3"
for program in edgekit:main edgekitd:daemon_main; do
  name=${program%%:*}
  printf '#!/opt/edgekit/bin/python3 -I\nimport sys\nfrom edgekit.cli import %s\nsys.exit(%s())\n' \
    "${program##*:}" "${program##*:}" > "$root/opt/edgekit/bin/$name"
  chmod 755 "$root/opt/edgekit/bin/$name"
  ln -s "/opt/edgekit/bin/$name" "$root/usr/bin/$name"
done

# The unit and a first configuration, by the command that a board would use. The user is made by
# the package's own script, which needs no systemd.
"$edgekit" device install --root "$root" --program /opt/edgekit/bin/edgekitd \
  --site site --id device --profile "$profile" >/dev/null
mkdir -p "$root/lib/systemd/system" "$root/usr/share/doc/edgekit"
mv "$root/etc/systemd/system/edgekitd.service" "$root/lib/systemd/system/"
rm -r "$root/etc/systemd" "$root/etc/sysusers.d" "$root/etc/tmpfiles.d"
cp "$here/../../LICENSE" "$root/usr/share/doc/edgekit/copyright"
printf '/etc/edgekit/device.toml\n/etc/edgekit/profile.json\n' > "$root/DEBIAN/conffiles"

chmod -R u=rwX,go=rX "$root"
for script in postinst prerm postrm; do
  install -m 755 "$here/$script" "$root/DEBIAN/$script"
done
size_kb=$(du -sk --exclude=DEBIAN "$root" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE_KB@/$size_kb/" \
  "$here/control.in" > "$root/DEBIAN/control"
# Times of files are those of the newest change, so that the same sources give the same package.
SOURCE_DATE_EPOCH=$(git -C "$here" log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH
# The lowest level of xz: the usual one saves an eighth and takes several times as long.
dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "$out/edgekit_${version}_$arch.deb"
