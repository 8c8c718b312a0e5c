#!/bin/sh
# End-to-end tests: starts a cluster of their own, installs the operator, runs them, and ends the cluster whatever
# came of them. Another name in AGENTSANDBOX_CLUSTER lets two runs live side by side.
set -eu
cd "$(dirname "$0")/.."
cluster="${CARGO_TARGET_DIR:-target}/debug/cluster"
export AGENTSANDBOX_CLUSTER="${AGENTSANDBOX_CLUSTER:-test}"
trap '"$cluster" --name "$AGENTSANDBOX_CLUSTER" down' EXIT
trap 'exit 130' INT TERM
# Compiled before the cluster starts, so that it does not wait for the compiler.
cargo test --locked -q -p e2e --no-run
cargo build --locked -q -p kubectl-sandbox
"$cluster" --name "$AGENTSANDBOX_CLUSTER" up
e2e/install.sh "$AGENTSANDBOX_CLUSTER"
# Shorter bounds where a test waits for one; that of a dead node is the sum of several, and must stay within PATIENCE.
"$cluster" --name "$AGENTSANDBOX_CLUSTER" kubectl -n agentsandbox-system set env deployment/agentsandbox-operator \
    IMAGE_PULL_TIMEOUT_SECONDS=5 START_TIMEOUT_SECONDS=40 DEADLINE_GRACE_SECONDS=10 PROBE_INTERVAL_SECONDS=2 \
    GATEWAY_CPU_MILLIS=20 >/dev/null
"$cluster" --name "$AGENTSANDBOX_CLUSTER" kubectl -n agentsandbox-system rollout status deployment/agentsandbox-operator --timeout=120s
failed=0
run() { # GROUP THREADS TEST…; the documentation of a group says why it has so many threads
    group=$1 threads=$2
    shift 2
    # shellcheck disable=SC2086 # a list of words
    cargo test --locked -p e2e --no-fail-fast $group -- --show-output --test-threads="$threads" "$@" || failed=1
}
run '--lib --bins --test together' "${E2E_THREADS:-3}" "$@"
run '--test pairs' 2 "$@"
run '--test alone' 1 "$@"
exit $failed
