#!/usr/bin/env bash
# Builds and runs the benchmark; bench.sh -quick ends in under two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: error: needs root, for sandboxes" >&2; exit 1; }
CGO_ENABLED=0 ${GO:-go} build -trimpath -o bin/bench ./bench
exec bin/bench "$@"
