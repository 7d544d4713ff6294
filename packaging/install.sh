#!/bin/sh
# Installs faasd-sec on this machine: the Debian package that lies beside this
# script or is named, and what it needs from the distribution. Nothing is started:
# the last lines say what comes next.
#   install.sh [PACKAGE.deb]
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
die() { echo "install: error: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "run this as root"
command -v apt-get >/dev/null 2>&1 || die "this is for Debian and its like; elsewhere unpack the package with ar and tar, or run: make build"
package=${1:-}
if [ -z "$package" ]; then
  for f in "$here"/faasd-sec_*.deb "$here"/out/faasd-sec_*.deb; do [ ! -e "$f" ] || package=$f; done
fi
[ -n "$package" ] || die "there is no faasd-sec_*.deb beside this script: name it, or run: make deb"
[ -r "$package" ] || die "$package cannot be read"
case $package in /*) ;; *) package=$PWD/$package ;; esac
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || echo "install: the package lists could not be brought up to date; going on with those that are here" >&2
apt-get install -y -qq "$package"
cat <<'NEXT'
faasd-sec is installed. What comes next:
  the first machine   faasd-sec init --owner FINGERPRINT, then edit /etc/faasd-sec/*.env, then
                      systemctl enable --now faasd-sec-keybroker faasd-sec-manifest-opener faasd-sec-coordinator
  every other one     faasd-sec node join --coordinator HOST:7443 --token TOKEN --id NAME, then edit /etc/faasd-sec/node.env, then
                      systemctl enable --now faasd-sec-node
  more                /usr/share/doc/faasd-sec/operations.md
NEXT
