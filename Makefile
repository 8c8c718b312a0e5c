CACHE ?= $(if $(AGENTSANDBOX_CACHE),$(AGENTSANDBOX_CACHE),$(HOME)/.cache/agent-sandbox)
ifndef CARGO_TARGET_DIR
export CARGO_TARGET_DIR := $(CACHE)/target
# Checkouts share what they build, so that a fresh one need not compile every dependency again. Cargo tells their
# sources apart by age alone: whoever builds after another checkout makes its own look new.
LAST_CHECKOUT := $(CARGO_TARGET_DIR)/last-checkout
$(shell mkdir -p $(CARGO_TARGET_DIR); [ "$$(cat $(LAST_CHECKOUT) 2>&1)" = "$(CURDIR)" ] || \
    { find Cargo.toml src e2e fuzz -type f -exec touch -c {} + && echo "$(CURDIR)" > $(LAST_CHECKOUT); })
endif
CLUSTER := $(CARGO_TARGET_DIR)/debug/cluster
# On a terminal cargo shows its own progress.
QUIET := $(shell [ -t 2 ] || echo -q)
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

.PHONY: help demo down test lint deny unit python fuzz fuzz-short e2e bench bench-decision bench-gateway bench-capture generate cluster

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: cluster ## Start a real cluster, run every example on it and show what came of it
	@$(CLUSTER) --name demo status >/dev/null 2>&1 || $(CLUSTER) --name demo up
	e2e/install.sh demo
	cargo build --locked $(QUIET) -p kubectl-sandbox
	cargo run --locked $(QUIET) -p e2e --bin demo

down: cluster ## End the demo's cluster; nothing of it is left
	$(CLUSTER) --name demo down

test: lint deny unit python fuzz-short e2e ## Everything that must pass

lint: ## Format and clippy
	cargo fmt --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cd fuzz && cargo fmt --check && cargo clippy --all-targets --locked --target-dir $(CARGO_TARGET_DIR)/fuzz -- -D warnings

deny: $(CARGO_DENY) ## Licences, sources and duplicates of dependencies
	$(CARGO_DENY) --all-features check bans licenses sources
	$(CARGO_DENY) --manifest-path fuzz/Cargo.toml --config deny.toml --all-features check bans licenses sources

unit: ## Unit and property tests; generated files are current
	cargo test --workspace --locked --exclude e2e

python: ## Format, types and unit tests of the Python client
	clients/python/test.sh unit

SECONDS ?= 60
CASES ?= 20000
fuzz: ## Each fuzz target for SECONDS=60, then the property tests with CASES=20000 each
	fuzz/run.sh --seconds $(SECONDS)
	PROPTEST_CASES=$(CASES) cargo test --locked -p agentsandbox-egress -p sandbox-gateway -p sandbox-supervisor -p sandbox-operator

fuzz-short: ## Each fuzz target with its seeds and 20,000 inputs made from them
	fuzz/run.sh --runs 20000

e2e: cluster ## End-to-end tests on a real cluster, which is ended afterwards
	e2e/test.sh

bench: cluster bench-decision ## All benchmarks: on a real cluster, which is ended afterwards, of the egress gateway and of the capture of actions
	e2e/bench.sh
	e2e/bench-gateway.sh
	e2e/bench-capture.sh

bench-decision: ## Only the gateway's decision core: identity, connection, request and record, together below 2 µs
	cargo bench --locked -q -p agentsandbox-egress --bench decision

bench-gateway: ## Only the egress gateway, beside squid and mitmproxy
	e2e/bench-gateway.sh

bench-capture: ## Only what the capture of actions costs a command
	e2e/bench-capture.sh

generate: ## Write the files that are generated from the API's types
	cargo run -q -p sandbox-operator -- crd agentsandbox > crds/agentsandbox.dev_agentsandboxes.yaml
	cargo run -q -p sandbox-operator -- crd sandboxpolicy > crds/agentsandbox.dev_sandboxpolicies.yaml
	cargo run -q -p sandbox-operator -- api-reference > docs/api-reference.md

cluster:
	cargo build --locked $(QUIET) -p cluster
	$(CLUSTER) build

$(CARGO_DENY):
	cargo install --debug --locked $(QUIET) --root $(CACHE)/cargo-deny-$(CARGO_DENY_VERSION) cargo-deny@$(CARGO_DENY_VERSION)
