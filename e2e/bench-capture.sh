#!/bin/sh
# Benchmark of the capture of actions, beside the same work without it. Needs root, a C compiler and no cluster.
# Usage: e2e/bench-capture.sh [arguments of `capture-bench`]
set -eu
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"
host=$(rustc -vV | sed -n 's/^host: //p')
command -v cc >/dev/null || { apt-get update -q && apt-get install -y -q gcc libc6-dev; } >/dev/null
cargo build --locked -q --release -p capture-bench
# As in the image: static, and small.
RUSTFLAGS='-C target-feature=+crt-static' \
    cargo build --locked -q --profile supervisor --target "$host" -p sandbox-supervisor
exec "$target/release/capture-bench" --supervisor "$target/$host/supervisor/sandbox-supervisor" "$@"
