#!/usr/bin/env bash
# Fetches the distribution's kernel for virtual machines and unpacks it, without
# installing it, for the tests in test/vm. Safe to run again.
set -euo pipefail
dir=/var/cache/faasd-sec/vm-kernel
[ -d "$dir" ] && ls "$dir"/boot/vmlinuz-* >/dev/null 2>&1 && exit 0
package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2; exit}')
[ -n "$package" ] || { apt-get update -qq; package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2; exit}'); }
[ -n "$package" ] || { echo "vm-kernel: error: the distribution has no linux-image-cloud-amd64" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(cd "$tmp" && apt-get download -qq -o APT::Sandbox::User=root "$package")
mkdir -p "$(dirname "$dir")" "$tmp/root"
dpkg-deb -x "$tmp"/*.deb "$tmp/root"
rm -rf "$dir"
mv "$tmp/root" "$dir"
echo "vm-kernel: $package"
