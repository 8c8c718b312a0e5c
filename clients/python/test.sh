#!/bin/sh
# Lint, types and tests of the Python client, in an environment of pinned packages. Usage: test.sh [unit | cluster]
# `cluster` needs KUBECONFIG and AGENTSANDBOX_NAMESPACE, a namespace with the policies of examples/00-policies.yaml.
set -eu
cd "$(dirname "$0")"
python=$(../../e2e/python-environment.sh requirements-test.txt)
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
