#!/usr/bin/env bash
# Installs what faasd-sec needs from the distribution, where it is missing.
# Safe to run again: it says what it finds and changes nothing that is there.
# "setup.sh test" installs as well what only the tests need: an emulator, and the
# kernel that it starts.
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# command -> Debian package
needs=(
  containerd:containerd runc:runc ip:iproute2 iptables:iptables
  nft:nftables tcpdump:tcpdump make:make git:git dpkg-deb:dpkg mke2fs:e2fsprogs
)

[ "${1:-}" != test ] || needs+=(qemu-system-x86_64:qemu-system-x86 promtool:prometheus systemd-analyze:systemd node:nodejs curl:curl xz:xz-utils)

missing=()
for need in "${needs[@]}"; do
  cmd=${need%%:*} pkg=${need#*:}
  PATH="$PATH:/usr/sbin:/sbin" command -v "$cmd" >/dev/null 2>&1 || missing+=("$pkg")
done
# The distribution's own: one below a home directory is closed to a function's uid.
[ -x /usr/bin/python3 ] || missing+=(python3)
# Plugins are no commands: they are where the package puts them.
for plugin in bridge host-local firewall portmap bandwidth; do
  [ -x "/usr/lib/cni/$plugin" ] || { missing+=(containernetworking-plugins); break; }
done
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)

if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || die "missing: ${missing[*]}; run this as root, or install them yourself"
  command -v apt-get >/dev/null 2>&1 || die "missing: ${missing[*]}; this system has no apt-get, install them with its own package manager"
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    die "apt-get could not install ${missing[*]}"
  fi
fi
say "containerd $(containerd --version | awk '{print $3}'), runc $(runc --version | awk 'NR==1{print $3}')"

# Go itself: the version in go.mod or newer.
GO=${GO:-go}
command -v "$GO" >/dev/null 2>&1 || die "Go is missing: install Go 1.26 or newer (https://go.dev/dl/) and put it on PATH"
have=$("$GO" env GOVERSION) && have=${have#go}
want=$(awk '$1=="go"{print $2}' "$(dirname "$0")/../go.mod")
if [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -1)" != "$want" ] && [ "$("$GO" env GOTOOLCHAIN)" = local ]; then
  die "Go $have is older than $want and GOTOOLCHAIN=local forbids fetching it"
fi
say "go $have"

if [ "${1:-}" = test ] && [ "$(id -u)" = 0 ]; then
  "$(dirname "$0")/vm-kernel.sh" || die "the kernels for the tests on cgroup v2 could not be fetched"
fi

[ "$(id -u)" = 0 ] || say "note: running sandboxes takes root; building does not"
say "ready"
