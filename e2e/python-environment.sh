#!/bin/sh
# Makes, once, a Python environment with the packages of a file of pinned requirements, and prints its interpreter.
# Usage: python-environment.sh FILE
set -eu
cache="${AGENTSANDBOX_CACHE:-$HOME/.cache/agent-sandbox}"
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
environment="$cache/python-$version-$(sha256sum "$1" | cut -c1-12)"
if [ ! -e "$environment/complete" ]; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo "Installing Debian packages: python3-venv" >&2
        apt-get -qq update >&2
        DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install python3-venv >/dev/null
    fi
    echo "Installing the Python packages of $1 (once)" >&2
    # Made whole beside its place, so that two runs do not meet.
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/.python.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m venv "$work/environment"
    "$work/environment/bin/python" -m pip -q install --require-hashes --only-binary=:all: -r "$1" >&2
    touch "$work/environment/complete"
    mv -T "$work/environment" "$environment" 2>/dev/null || [ -e "$environment/complete" ]
fi
# Modules are run, not scripts: those name the folder in which the environment was made.
echo "$environment/bin/python"
