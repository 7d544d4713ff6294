#!/usr/bin/env bash
# Every test. Packages run one after the other where they use the machine as a
# whole: two cores do not hold two clusters.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
export CGO_ENABLED=0

if [ "$(id -u)" != 0 ] && [ "${REQUIRE_ALL:-}" = 1 ]; then
  echo "test: error: REQUIRE_ALL=1 needs root, for sandboxes" >&2
  exit 1
fi

# Those that start containerd, clusters or namespaces, and the rest.
heavy='/(test/e2e|test/openfaas|test/vm|runtime/containerd|runtime/containerd/daemon|cgroups|monitor|network|scratch|local|packaging)$'
all=$($GO list ./...)
light=$(grep -Ev "$heavy" <<<"$all")
# shellcheck disable=SC2086
$GO test -timeout 5m $light
for pkg in $(grep -E "$heavy" <<<"$all"); do
  $GO test -timeout 30m -count=1 "$pkg"
done
