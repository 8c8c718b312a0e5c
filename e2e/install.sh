#!/bin/sh
# Builds the images of operator, supervisor, gateway and test tool, loads them into a running cluster, lets `world` play
# what is outside of it, and installs the operator from manifests/, as a user would. Usage: e2e/install.sh CLUSTER
set -eu
cluster_name=$1
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:=target}"
host=$(rustc -vV | sed -n 's/^host: //p')
flags_of_host=CARGO_TARGET_$(echo "$host" | tr 'a-z-' 'A-Z_')_RUSTFLAGS
cluster="$CARGO_TARGET_DIR/debug/cluster"
images="$CARGO_TARGET_DIR/images"
mkdir -p "$images"

# On a terminal cargo shows its own progress.
[ -t 2 ] && quiet='' || quiet=-q
echo "Building the images (static binaries; a few minutes the first time)" >&2
export "$flags_of_host=-C target-feature=+crt-static"
cargo build --locked $quiet --profile supervisor --target "$host" -p sandbox-supervisor
cargo build --locked $quiet --release --target "$host" -p sandbox-operator -p sandbox-gateway -p testtool
unset "$flags_of_host"
cargo build --locked $quiet -p world
release="$CARGO_TARGET_DIR/$host/release"
"$cluster" image --out "$images/supervisor.tar" --reference agent-sandbox.local/supervisor:dev \
    --file "$CARGO_TARGET_DIR/$host/supervisor/sandbox-supervisor:/sandbox-supervisor" --entrypoint /sandbox-supervisor
"$cluster" image --out "$images/operator.tar" --reference agent-sandbox.local/operator:dev \
    --file "$release/sandbox-operator:/sandbox-operator" --entrypoint /sandbox-operator --user 65532:65532
"$cluster" image --out "$images/gateway.tar" --reference agent-sandbox.local/gateway:dev \
    --file "$release/sandbox-gateway:/sandbox-gateway" --entrypoint /sandbox-gateway --user 65532:65532
"$cluster" image --out "$images/testtool.tar" --reference agent-sandbox.local/testtool:dev \
    --file "$release/testtool:/testtool" --entrypoint /testtool
"$cluster" image --out "$images/volume.tar" --reference agent-sandbox.local/with-volume:dev \
    --file "$release/testtool:/testtool" --entrypoint /testtool --volume /data
"$cluster" --name "$cluster_name" load "$images/supervisor.tar" "$images/operator.tar" "$images/gateway.tar" \
    "$images/testtool.tar" "$images/volume.tar" "$("$cluster" agent-image)" "$("$cluster" sdk-image)"
"$cluster" --name "$cluster_name" outside "$CARGO_TARGET_DIR/debug/world" \
    --ca-out "{state}/outside-ca.pem" --git "{state}/outside-git"
"$cluster" --name "$cluster_name" kubectl apply -k manifests
# What no rule may open: Services, pods, nodes. And whom gateways trust outside: the authority of `world`.
"$cluster" --name "$cluster_name" kubectl -n agentsandbox-system set env deployment/agentsandbox-operator \
    CLUSTER_RANGES=10.96.0.0/16,10.244.0.0/16,172.30.0.0/24 \
    GATEWAY_EXTRA_CA="$(cat "/var/lib/agent-sandbox/$cluster_name/outside-ca.pem")" >/dev/null
"$cluster" --name "$cluster_name" kubectl -n agentsandbox-system rollout status deployment/agentsandbox-operator --timeout=120s
