#!/usr/bin/env bash
# A whole cluster on this machine, one sealed function deployed and invoked, and
# a look at who holds what. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "demo: error: sandboxes need root; run: sudo make demo" >&2; exit 1; }
work=$(mktemp -d /tmp/faasd-sec-demo-XXXXXX)
up=
finish() {
  code=$?
  trap - EXIT INT TERM
  if [ -n "$up" ] && kill -0 "$up" 2>/dev/null; then
    step "stopping everything"
    kill -TERM "$up"
    wait "$up" || code=1
  fi
  left=$(leftovers)
  [ -z "$left" ] || { printf 'demo: left behind:\n%s\n' "$left" >&2; code=1; }
  if [ $code = 0 ]; then rm -rf "$work"; echo "    nothing is left: no process, mount, cgroup, socket or file"; else echo "demo: failed; see $work" >&2; fi
  exit $code
}
# What a run leaves that names its directories: there must be nothing.
leftovers() {
  ps -eo pid,args | grep -F -e "$work/state" ${run_dir:+-e "$run_dir"} | grep -v grep || true
  grep -F -e "$work" ${run_dir:+-e "$run_dir"} /proc/self/mountinfo || true
  if [ -n "${run_dir:-}" ]; then
    find /sys/fs/cgroup -type d -path "*/faasd-sec/$(basename "$run_dir")-*" || true
    ls -d "$run_dir" 2>/dev/null || true
  fi
}
trap finish EXIT
trap 'exit 130' INT TERM
step() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
run() { printf '    $ faasd-sec %s\n' "$*"; bin/faasd-sec "$@" | sed 's/^/    /'; }

export FAASD_SEC_CONFIG=$work/config FAASD_SEC_PASSPHRASE=$(head -c 18 /dev/urandom | base64)

step "a cluster on this machine: containerd, key broker, coordinator, two nodes"
bin/faasd-sec up --nodes 2 --state "$work/state" --listen 127.0.0.1:0 >"$work/up.out" 2>"$work/up.err" &
up=$!
for _ in $(seq 300); do
  grep -q '^ready' "$work/up.out" && break
  kill -0 "$up" 2>/dev/null || { cat "$work/up.err" >&2; exit 1; }
  sleep 0.1
done
grep -q '^ready' "$work/up.out" || { cat "$work/up.err" >&2; exit 1; }
sed 's/^/    /' "$work/up.out"
export FAASD_SEC_GATEWAY=$(awk '$1=="ready"{print $2}' "$work/up.out")

run_dir=$(ps -eo args | awk -v s="$work/state" 'index($0, s) && match($0, /-run [^ ]+/) {d = substr($0, RSTART+5, RLENGTH-5); sub(/\/n[0-9]+$/, "", d); print d; exit}')

step "keys of an owner, who is the caller here as well"
run key new

step "a function whose code and model are secret, on a public Python image"
cp -r examples/functions/risk-score "$work/risk-score"
model=model-$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n')
printf '# %s\n' "$model" >>"$work/risk-score/model/score.py"
run build "$work/risk-score"
run deploy -f "$work/risk-score/function.yml"

step "a sealed request, opened and answered inside the function's sandbox"
applicant=applicant-$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n')
data='{"applicant":"'$applicant'","debt_to_income":0.5,"late_payments":2,"years_employed":1,"account_age_years":2,"credit_used":0.9}'
for start in cold warm; do
  began=$(date +%s%N)
  printf '    $ faasd-sec invoke risk-score --data %s\n' "'{\"applicant\":\"${applicant:0:16}…\", …}'"
  bin/faasd-sec invoke risk-score --data "$data" >"$work/result"
  sed 's/^/    /' "$work/result"
  printf '    (%s, %d ms with the start of the command)\n' "$start" $((($(date +%s%N) - began) / 1000000))
done

step "who can see what: every process's memory and every file, searched"
go run ./scripts/whosees -state "$work/state" "payload=$applicant" "secret code=$model" "result=$(sed 's/[[:space:]]*$//' "$work/result" | head -c 60)"
cat <<'TEXT'
    The caller has the result, opened on its own side. Coordinator, nodes, key broker,
    containerd and the disk never held payload, code or result in clear.
    Not hidden: names, sizes and times; and, without a hardware TEE, a sandbox's memory
    from this machine's root: the evidence is node-key (dev-untrusted). docs/threat-model.md
TEXT
run nodes
