#!/bin/sh
# Lint, types and tests of the Python client, in an environment of pinned packages. Usage: test.sh [unit | cluster]
# `cluster` needs KUBECONFIG and AGENTSANDBOX_NAMESPACE, a namespace with the policies of examples/00-policies.yaml.
set -eu
cd "$(dirname "$0")"
cache="${AGENTSANDBOX_CACHE:-$HOME/.cache/agent-sandbox}"
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
environment="$cache/python-$version-$(sha256sum requirements-test.txt | cut -c1-12)"
if [ ! -e "$environment/complete" ]; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo "Installing Debian packages: python3-venv" >&2
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install python3-venv >/dev/null
    fi
    echo "Installing what the Python client's tests need (once)" >&2
    # Made whole beside its place, so that two runs do not meet.
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/.python.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m venv "$work/environment"
    "$work/environment/bin/python" -m pip -q install --require-hashes --only-binary=:all: -r requirements-test.txt
    touch "$work/environment/complete"
    mv -T "$work/environment" "$environment" 2>/dev/null || [ -e "$environment/complete" ]
fi
# Modules, not scripts: those name the folder in which the environment was made.
python="$environment/bin/python"
export PYTHONPATH="$PWD/src" PYTHONDONTWRITEBYTECODE=1
case "${1:-unit}" in
unit)
    "$python" -m ruff check --no-cache .
    "$python" -m ruff format --no-cache --check .
    "$python" -m mypy --cache-dir=/dev/null
    "$python" -m pytest -q -p no:cacheprovider
    ;;
cluster)
    "$python" -m pytest -q -p no:cacheprovider tests/cluster
    ;;
*)
    echo "usage: $0 [unit | cluster]" >&2
    exit 2
    ;;
esac
