#!/usr/bin/env bash
# Every test. Packages run one after the other where they use the machine as a
# whole: two cores do not hold two clusters. One that fails hides no other.
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
failed=()
# shellcheck disable=SC2086
$GO test -timeout 10m $light || failed+=("the packages that need no machine of their own")
for pkg in $(grep -E "$heavy" <<<"$all"); do
  $GO test -timeout 30m -count=1 "$pkg" || failed+=("$pkg")
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'test: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
