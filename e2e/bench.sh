#!/bin/sh
# Benchmarks: starts a cluster of their own, installs the operator, measures, and ends the cluster.
set -eu
cd "$(dirname "$0")/.."
cluster="${CARGO_TARGET_DIR:-target}/debug/cluster"
trap '"$cluster" --name bench down' EXIT
trap 'exit 130' INT TERM
cargo build --locked -q -p e2e-bench
"$cluster" --name bench up
e2e/install.sh bench
host=$(rustc -vV | sed -n 's/^host: //p')
"${CARGO_TARGET_DIR:-target}/debug/e2e-bench" \
    --supervisor "${CARGO_TARGET_DIR:-target}/$host/supervisor/sandbox-supervisor" "$@"
