#!/usr/bin/env bash
# The Debian package, from binaries that `make build` made: packaging/out/faasd-sec_VERSION_amd64.deb
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
export CGO_ENABLED=0
out=packaging/out
rm -rf "$out"
mkdir -p "$out/man/man1" "$out/man/man8" "$out/completions" "$out/bin"

version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
version=${version#v}
# A version of nothing but a commit is no order: before any release.
case $version in [0-9]*.[0-9]*) ;; *) version=0.0.0+git.${version//-/.} ;; esac

bin/faasd-sec man --dir "$out/man/man1"
$GO run ./packaging/man -bin bin -dir "$out/man/man8"
gzip -9n "$out"/man/*/*
bin/faasd-sec completion bash >"$out/completions/faasd-sec.bash"
bin/faasd-sec completion zsh >"$out/completions/_faasd-sec"
bin/faasd-sec completion fish >"$out/completions/faasd-sec.fish"

$GO build -C packaging/tool -o "$PWD/$out/bin/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm
# One commit, one package: nfpm takes the time of its files from here.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH
VERSION=$version "$out/bin/nfpm" package --config packaging/nfpm.yaml --packager deb --target "$out/" >"$out/nfpm.log" 2>&1 ||
  { cat "$out/nfpm.log" >&2; exit 1; }
rm -rf "$out/bin" "$out/nfpm.log"
ls "$out"/*.deb
