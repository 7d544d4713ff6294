#!/usr/bin/env bash
# Builds and runs the benchmark. A full run takes under a quarter of an hour and
# writes docs/benchmarks.md and its plots as well; bench.sh -quick takes under
# two minutes and leaves the document alone.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: error: needs root, for sandboxes" >&2; exit 1; }
CGO_ENABLED=0 ${GO:-go} build -trimpath -o bin/bench ./bench
[ $# -gt 0 ] || set -- -docs docs/benchmarks.md
exec bin/bench "$@"
