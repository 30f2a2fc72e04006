# Everything starts here: `make up` runs Carrel on this machine, `make test` runs every test.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
RUNSC_VERSION := carrel-20260905-160fafc42237
BUILD_RUNSC = cd tools/runsc && $(GO_BUILD) -ldflags '-s -w -X gvisor.dev/gvisor/runsc/version.version=$(1)' -o $(CURDIR)/$@ .
export CARREL_BIN := $(CURDIR)/bin
export PATH := $(CURDIR)/.tools/bin:$(PATH)

GO_BUILD := CGO_ENABLED=0 go build -trimpath
UP_FLAGS ?=

SQLC := github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
PROTOC_GEN_CONNECT := connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
PROTOC_GEN_OPENAPI := github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv3@v2.32.0

WEB_SOURCES = $(shell find web -path web/node_modules -prune -o -path web/dist -prune -o -type f ! -name '*.go' ! -name '*.md' ! -name '*.test.ts*' -print)

.PHONY: help up down build install install-test install-bench tools generate generate-check lint test test-short test-web bench clean web-modules FORCE

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

up: install build ## Build and start Carrel on this machine, with a tour the first time
	@bin/carreld up --tour $(UP_FLAGS)

down: ## Pause every box and stop Carrel
	@bin/carreld down $(UP_FLAGS)

build: bin/runsc bin/carreld bin/carrel bin/carrel-agent ## Build bin/

bin/carreld: web/dist/.built FORCE
	@$(GO_BUILD) -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/carreld

bin/carrel: FORCE
	@$(GO_BUILD) -ldflags '-s -w -X main.buildVersion=$(VERSION)' -o $@ ./cmd/carrel

# What the pages are built with, anew when the lock file changes.
web/node_modules/.stamp: web/package.json web/package-lock.json web/.npmrc
	@echo "fetching what the pages are built with"
	@scripts/node.sh npm --prefix web ci --loglevel=error
	@touch $@

web-modules: web/node_modules/.stamp

# The pages that carreld has in it.
web/dist/.built: web/node_modules/.stamp $(WEB_SOURCES)
	@echo "building the pages"
	@cd web && ../scripts/node.sh npm run --silent build -- --logLevel warn
	@touch $@

# The agent's version is its content: a box keeps the agent that it began with, whatever we are at.
bin/carrel-agent: FORCE
	@$(GO_BUILD) -ldflags '-s -w' -o $@ ./cmd/carrel-agent

bin/runsc: tools/runsc/go.mod tools/runsc/go.sum $(wildcard tools/runsc/*.go)
	@echo "building runsc (a few minutes, once)"
	@$(call BUILD_RUNSC,$(RUNSC_VERSION))

# What a later Carrel might bring, for the tests of upgrades: only its linking takes time.
bin/runsc-next: bin/runsc
	@$(call BUILD_RUNSC,carrel-next)

install:
	@scripts/install.sh

install-test:
	@scripts/install.sh test

install-bench:
	@scripts/install.sh bench

tools: .tools/bin/sqlc .tools/bin/golangci-lint .tools/bin/protoc-gen-go .tools/bin/protoc-gen-connect-go .tools/bin/protoc-gen-openapiv3

.tools/bin/sqlc: ; @GOBIN=$(CURDIR)/.tools/bin go install $(SQLC)
.tools/bin/golangci-lint: ; @GOBIN=$(CURDIR)/.tools/bin go install $(GOLANGCI)
.tools/bin/protoc-gen-go: ; @GOBIN=$(CURDIR)/.tools/bin go install $(PROTOC_GEN_GO)
.tools/bin/protoc-gen-connect-go: ; @GOBIN=$(CURDIR)/.tools/bin go install $(PROTOC_GEN_CONNECT)
.tools/bin/protoc-gen-openapiv3: ; @GOBIN=$(CURDIR)/.tools/bin go install $(PROTOC_GEN_OPENAPI)

generate: install tools web-modules ## Make every generated file
	@scripts/generate.sh

generate-check: generate ## Fail when a generated file is not what its source makes
	@git diff --exit-code --stat -- api internal docs web/src/gen || { echo "generated files differ: run 'make generate' and commit the result" >&2; exit 1; }

lint: tools ## Run the linters
	@golangci-lint run ./...

test-web: web/dist/.built ## Check and test the pages' own code
	@cd web && ../scripts/node.sh npm run --silent typecheck
	@cd web && ../scripts/node.sh npm run --silent lint
	@cd web && ../scripts/node.sh npm test --silent

test: install-test tools build bin/runsc-next generate-check lint test-web ## Run every test (root, Debian 12)
	go test -timeout 60m ./test/e2e ./... # the longest first

test-short: web/dist/.built ## Run the tests that need neither root nor gVisor
	go test -short ./...

bench: install-bench build ## Measure against raw runsc on this machine
	@go test -tags bench -count=1 -timeout 30m -v -run 'TestBench' ./test/e2e

clean: ## Remove what was built
	rm -rf bin .cache web/node_modules
	find web/dist -mindepth 1 ! -name .gitkeep -delete
