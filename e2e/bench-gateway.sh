#!/bin/sh
# Benchmark of the egress gateway beside squid and mitmproxy, in a network namespace and a mount namespace of its own.
# Needs root. Usage: e2e/bench-gateway.sh [arguments of `gateway-bench compare`]
set -eu
cd "$(dirname "$0")/.."
: "${CARGO_TARGET_DIR:=target}"
missing=
for package in squid mitmproxy; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "Installing Debian packages:$missing" >&2
    apt-get -qq update
    # Nothing may start by itself: this run starts its own.
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null
    rm -f /usr/sbin/policy-rc.d
fi
cargo build --locked -q --release -p world -p e2e-bench
work=$(mktemp -d)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
echo "nameserver 127.0.0.1" >"$work/resolv.conf"
# All addresses of the outside world, of the sandbox and of the gateway lie on this namespace's loopback.
unshare --net --mount --pid --fork --mount-proc sh -eu -c '
    ip link set lo up
    ip route add local 93.184.216.0/24 dev lo
    ip addr add 10.244.9.9/32 dev lo
    mount --bind "$1/resolv.conf" /etc/resolv.conf
    work=$1; bin=$2; shift 2
    ulimit -n "$(ulimit -Hn)"
    exec "$bin/gateway-bench" compare --work "$work" --world "$bin/world" "$@"
' sh "$work" "$CARGO_TARGET_DIR/release" "$@"
