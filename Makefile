# Everything that a person or a machine does with this tree; `make help` lists it.
# Two goals in one call share their steps: `make check test` builds the tools, the programs and the unit tests once.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/spheroseg/muster/internal/version.Version=$(VERSION)
PROGRAMS := ./agent/cmd/muster-agent ./coordinator/cmd/muster-coordinator ./ctl/cmd/musterctl
FUZZTIME ?= 30s
CRASHTIME ?= 60m

cache := .cache
tools := $(cache)/bin
reports := $(cache)/report
# Programs that the fleet and the tests run beside ours. Their versions are pinned where they are started.
beside := $(tools)/caddy $(tools)/registry $(tools)/grpcurl
setup := internal/tools/setup
# Debian keeps dockerd, iptables and ip out of an ordinary user's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# -buildvcs=false: the version comes from VERSION, and a checkout that belongs to somebody else must build too.
static := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false

.PHONY: help
help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Build

.PHONY: build
build: ## Builds muster-agent, muster-coordinator and musterctl into bin/.
	$(static) -ldflags '$(LDFLAGS)' -o bin/ $(PROGRAMS)

.PHONY: generate
generate: $(cache)/gen.done ## Generates proto/gen from the protos; what no proto has any more goes.
	@if ! diff -rq $(cache)/gen/proto/gen proto/gen >/dev/null 2>&1; then rm -rf proto/gen && cp -r $(cache)/gen/proto/gen proto/gen; fi

# What the protos generate now, beside the tree: to be put into place, or to be compared with it.
.PHONY: $(cache)/gen.done
$(cache)/gen.done: $(tools)/buf
	@rm -rf $(cache)/gen
	@$(tools)/buf generate --template proto/buf.gen.yaml -o $(cache)/gen
	@$(tools)/buf generate --template proto/buf.gen.connect.yaml -o $(cache)/gen

##@ Check

.PHONY: check
check: generated lint unit ## Checks generated code, style, structure and unit tests: green before every commit.

.PHONY: generated
generated: $(cache)/gen.done
	@diff -rq $(cache)/gen/proto/gen proto/gen || { echo 'proto/gen is not what the protos generate: run `make generate` and commit the result.' >&2; exit 1; }

.PHONY: lint
lint: $(tools)/buf $(tools)/golangci-lint ## Lints protos, their compatibility and the Go code.
	$(tools)/buf lint
	$(tools)/buf format --diff --exit-code proto
	@internal/tools/breaking $(tools)/buf
	$(tools)/golangci-lint run ./...

.PHONY: unit
unit: $(tools)/report $(tools)/caddy $(tools)/registry # Runs the tests of every package, internal/archtest among them, with the race detector where there is a C compiler; the simulated fleets also without it, which is when they play 50 seeds.
	@$(setup) race || true
	@$(setup) engine || true
	@if $(setup) --have race; then export CGO_ENABLED=1; race=-race note=; else race= note='ran without -race: there is no C compiler'; fi; \
	$(GO) -C internal/tools vet ./report; $(GO) -C internal/tools test ./report >/dev/null; \
	{ $(GO) test $$race -json -timeout 10m ./...; $(GO) test -json -timeout 10m ./coordinator/internal/simulation; } | $(tools)/report -name unit -note "$$note" -to $(reports)/1-unit.txt

##@ Run

.PHONY: test
test: unit e2e ## Sets this machine up and runs all tests, the end-to-end ones on real engines included.
	@echo
	@cat $(reports)/1-unit.txt $(reports)/2-e2e.txt

.PHONY: e2e
e2e: $(tools)/report $(beside) ## Runs the end-to-end tests on real Docker engines.
	@$(setup) engine || true
	@$(GO) test -tags e2e -json -count=1 -timeout 30m ./deploy/e2e/... | $(tools)/report -name e2e -each -to $(reports)/2-e2e.txt

.PHONY: demo
demo: build $(tools)/caddy ## Shows a fleet on this machine: updates without a failed request. KEEP=1 leaves it running.
	@$(setup) demo
	@$(static) -o $(tools)/demo ./deploy/demo
	@$(tools)/demo

# The simulated fleets first, as many as the time is long; what is left of it is for real programs, and the enumeration of crash points ends with it.
.PHONY: crash
crash: $(tools)/report $(beside) ## Kills programs before and after every write, at random and in simulated time, for up to CRASHTIME (60m).
	@$(setup) engine
	@mkdir -p $(reports) && rm -f $(reports)/3-crash-counts.txt
	@minutes='$(CRASHTIME)'; minutes=$${minutes%m}; until=$$(($$(date +%s) + 60 * minutes)); \
	{ MUSTER_SEEDS=$$((1000 * minutes / 60 + 1)) $(GO) test -json -count=1 -timeout $(CRASHTIME) ./coordinator/internal/simulation; \
	  CRASH_UNTIL=$$until CRASH_REPORT=$(CURDIR)/$(reports)/3-crash-counts.txt $(GO) test -tags crash -json -count=1 -run Crash -timeout $(CRASHTIME) ./deploy/e2e; \
	} | $(tools)/report -name crash -each -to $(reports)/3-crash.txt && status=0 || status=$$?; \
	echo; cat $(reports)/3-crash-counts.txt || true; exit $$status

.PHONY: bench
bench: $(beside) ## Measures Muster against its peers; BENCHFLAGS='-only raft-commit -runs 3' for a part.
	@$(setup) engine
	@$(static) -o $(tools)/bench ./deploy/bench
	@$(tools)/bench $(BENCHFLAGS)

.PHONY: fuzz
fuzz: ## Runs every fuzz test for FUZZTIME (30s).
	@grep -rl --include='*_test.go' '^func Fuzz' agent coordinator ctl internal deploy 2>/dev/null | xargs -rn1 dirname | sort -u | while read -r dir; do \
	  grep -h '^func Fuzz' $$dir/*_test.go | sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/' | while read -r name; do \
	    $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) ./$$dir </dev/null; \
	  done; \
	done

.PHONY: clean
clean: ## Removes what the other targets made, the tools included.
	rm -rf bin dist $(cache)

# The tools are pinned in their own module, so that what they need never reaches the product. They are built again only when it changes.
$(tools)/buf: internal/tools/go.mod
	@echo 'building buf (once)' >&2
	@$(GO) -C internal/tools build -buildvcs=false -o $(CURDIR)/$@ github.com/bufbuild/buf/cmd/buf
	@touch $@

$(tools)/golangci-lint: internal/tools/go.mod
	@echo 'building golangci-lint (once; minutes with an empty build cache)' >&2
	@$(GO) -C internal/tools build -buildvcs=false -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

$(tools)/report: $(wildcard internal/tools/report/*.go) internal/tools/go.mod
	@$(GO) -C internal/tools build -buildvcs=false -o $(CURDIR)/$@ ./report
	@touch $@

$(beside): deploy/fleet/tools.go
	@module=$$(sed -nE 's/^\s*$(@F)Module\s*=\s*"(.*)"$$/\1/p' $<); \
	echo "building $$module (once)" >&2; \
	GOBIN=$(CURDIR)/$(tools) CGO_ENABLED=0 GOFLAGS= $(GO) install -trimpath -ldflags='-s -w' "$$module"
	@touch $@
