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
# Shorter bounds where a test waits for one.
"$cluster" --name "$AGENTSANDBOX_CLUSTER" kubectl -n agentsandbox-system set env deployment/agentsandbox-operator \
    IMAGE_PULL_TIMEOUT_SECONDS=5 START_TIMEOUT_SECONDS=40 DEADLINE_GRACE_SECONDS=10 PROBE_INTERVAL_SECONDS=2 \
    GATEWAY_CPU_MILLIS=20 >/dev/null
"$cluster" --name "$AGENTSANDBOX_CLUSTER" kubectl -n agentsandbox-system rollout status deployment/agentsandbox-operator --timeout=120s
# Sandboxes of the egress tests run whole package managers and SDKs: on two processors no more than two fit.
egress='budgets docs egress egress_credentials egress_live egress_refused models'
pairs='' others='--lib --bins'
for file in e2e/tests/tests/*.rs; do
    test=$(basename "$file" .rs)
    case " $egress " in
    *" $test "*) pairs="$pairs --test $test" ;;
    *) others="$others --test $test" ;;
    esac
done
failed=0
# shellcheck disable=SC2086 # lists of words
{
    cargo test --locked -p e2e --no-fail-fast $others -- --show-output --test-threads="${E2E_THREADS:-4}" "$@" || failed=1
    cargo test --locked -p e2e --no-fail-fast $pairs -- --show-output --test-threads=2 "$@" || failed=1
}
exit $failed
