#!/bin/sh
# Runs the fuzz targets: each for so many seconds, or for a number of inputs.
# Usage: fuzz/run.sh (--seconds N | --runs N) [TARGET ...]
#
# The stable compiler instruments by itself; the flags are those of `cargo fuzz run -s none`. What is found new goes to
# a corpus beside the build, what fails to fuzz/artifacts.
set -eu
cd "$(dirname "$0")"
case "${1:-}" in
--seconds) bound="-max_total_time=$2" ;;
--runs) bound="-runs=$2" ;;
*)
    sed -n 's/^# \{0,1\}//; 2,3p' "$0" >&2
    exit 2
    ;;
esac
shift 2
base="${CARGO_TARGET_DIR:-target}"
export CARGO_TARGET_DIR="$base/fuzz" CARGO_INCREMENTAL=0
host=$(rustc -vV | sed -n 's/^host: //p')
coverage=-Cllvm-args=-sanitizer-coverage
export RUSTFLAGS="--cfg=fuzzing -Cpasses=sancov-module $coverage-level=4 $coverage-inline-8bit-counters \
    $coverage-pc-table $coverage-trace-compares -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1"
if ! command -v c++ >/dev/null; then
    echo "Installing Debian packages: g++" >&2
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install g++ >/dev/null
fi
# With a target named, the flags hold for what runs in it and not for build scripts.
cargo build --locked -q --target "$host" --bins
[ $# -gt 0 ] || set -- $(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"|\1|p' Cargo.toml)
mkdir -p artifacts
failed=0
for target in "$@"; do
    corpus="$CARGO_TARGET_DIR/corpus/$target"
    mkdir -p "$corpus"
    log="$CARGO_TARGET_DIR/$target.log"
    if ! "$CARGO_TARGET_DIR/$host/debug/$target" "$bound" -max_len=4096 -timeout=300 -rss_limit_mb=1024 \
        -artifact_prefix="artifacts/$target-" -print_final_stats=1 "$corpus" "seeds/$target" >"$log" 2>&1; then
        grep -A3 "panicked at\|^==.*ERROR" "$log" >&2 || tail -40 "$log" >&2
        echo "$target: FAILED; the input is in fuzz/artifacts, the rest in $log" >&2
        failed=1
        continue
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
    echo "$target: $runs inputs, $covered edges covered"
done
exit $failed
