#!/usr/bin/env bash
# Fetches Debian's kernels for virtual machines and unpacks them, without
# installing them, for the tests in test/vm: the oldest that this project serves,
# and the newest that a stable release is offered. Safe to run again.
set -euo pipefail
base=/var/cache/faasd-sec/kernels
for suite in bookworm trixie-backports; do
  dir=$base/$suite
  ls "$dir"/boot/vmlinuz-* >/dev/null 2>&1 && continue
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  # Lists of its own: this machine may be of another release.
  mkdir -p "$tmp"/lists/partial "$tmp"/cache/archives/partial "$tmp"/root
  printf 'Types: deb\nURIs: http://deb.debian.org/debian\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
    "$suite" >"$tmp/debian.sources"
  apt=(-qq -t "$suite" -o "Dir::Etc::sourcelist=$tmp/debian.sources" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$tmp/lists"
    -o "Dir::Cache=$tmp/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3)
  apt-get "${apt[@]}" update
  # One package, or from some release on one for the kernel and one for its modules.
  depends() { apt-cache "${apt[@]}" depends "$1" | awk -v p="^linux-($2)-[0-9]" '$1=="Depends:" && $2 ~ p {print $2}'; }
  package=$(depends linux-image-cloud-amd64 image | head -1)
  [ -n "$package" ] || { echo "vm-kernel: error: $suite has no linux-image-cloud-amd64" >&2; exit 1; }
  mapfile -t parts < <(depends "$package" 'binary|modules')
  (cd "$tmp" && apt-get "${apt[@]}" download "$package" "${parts[@]}")
  for deb in "$tmp"/linux-*.deb; do dpkg-deb -x "$deb" "$tmp/root"; done
  [ -d "$tmp/root/lib" ] || mv "$tmp/root/usr/lib" "$tmp/root/lib"
  for kernel in "$tmp"/root/lib/modules/*/vmlinuz; do
    [ -e "$kernel" ] || continue # it lies in /boot, as it used to
    mkdir -p "$tmp/root/boot"
    mv "$kernel" "$tmp/root/boot/vmlinuz-$(basename "$(dirname "$kernel")")"
  done
  find "$tmp/root/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -r -P 2 -n 100 xz -d
  rm -rf "$dir"
  mkdir -p "$base"
  mv "$tmp/root" "$dir"
  rm -rf "$tmp"
  trap - EXIT
  echo "vm-kernel: $suite $package"
done
