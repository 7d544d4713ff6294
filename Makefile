# faasd-sec. `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BINARIES := faasd-sec coordinator keybroker manifest-opener node agent containerd-shim-faasdsec-v1 containerd-shim-faasdsec-server
FUZZTIME ?= 20s
export CGO_ENABLED := 0

.PHONY: help build deb demo test bench bench-quick lint fuzz setup setup-test clean $(addprefix bin/,$(BINARIES))

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: $(addprefix bin/,$(BINARIES)) ## static binaries into bin/

$(addprefix bin/,$(BINARIES)): bin/%:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

# What is allocated while a manifest is opened is erased when it is freed; see manifest/opener/erase.go.
bin/manifest-opener: export GOEXPERIMENT = runtimesecret

deb: build ## a Debian package into packaging/out
	VERSION='$(VERSION)' packaging/build.sh

setup: ## install what is missing from the distribution
	scripts/setup.sh

demo: setup build ## deploy and invoke a sealed function on a private containerd, then clean up
	scripts/demo.sh

setup-test: ## the same, and what only tests need
	scripts/setup.sh test

test: setup-test build ## every test, those against real containerd included (needs root)
	scripts/test.sh

lint: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not gofmt'ed:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench: setup build ## floors and ours in one run; figures into bench/out
	scripts/bench.sh

bench-quick: setup build ## the same with fewer repetitions, in two to three minutes
	scripts/bench.sh -quick

fuzz: ## each fuzz target for FUZZTIME
	scripts/fuzz.sh $(FUZZTIME)

clean: ## remove what the build made
	rm -rf bin bench/out packaging/out
