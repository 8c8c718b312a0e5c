CACHE ?= $(if $(AGENTSANDBOX_CACHE),$(AGENTSANDBOX_CACHE),$(HOME)/.cache/agent-sandbox)
export CARGO_TARGET_DIR ?= $(CACHE)/target

.PHONY: help test lint unit generate

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

test: lint unit ## Everything that must pass

lint: ## Format and clippy
	cargo fmt --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

unit: ## Unit and property tests; generated files are current
	cargo test --workspace --locked

generate: ## Write the files that are generated from the API's types
	cargo run -q -p sandbox-operator -- crd agentsandbox > crds/agentsandbox.dev_agentsandboxes.yaml
	cargo run -q -p sandbox-operator -- crd sandboxpolicy > crds/agentsandbox.dev_sandboxpolicies.yaml
	cargo run -q -p sandbox-operator -- api-reference > docs/api-reference.md
