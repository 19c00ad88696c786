# `make help` lists the targets. Everything sets up what it needs first.
BUILD ?= build
CMAKE_FLAGS ?=
JOBS ?= $(shell nproc)
SHELL := /bin/bash
# Versions differ in layout: 14 decides wherever it is.
CLANG_FORMAT := $(shell command -v clang-format-14 || echo clang-format)

.PHONY: help setup build demo test bench lint format docs-check asan tsan clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what is missing (Debian packages, .venv)
	@cmp -s <(cat scripts/packages.txt scripts/setup) .cache/setup.done || scripts/setup

$(BUILD)/build.ninja: | setup
	@cmake -G Ninja -S . -B $(BUILD) $(CMAKE_FLAGS) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }; mv $(BUILD).log $(BUILD)/configure.log

build: setup $(BUILD)/build.ninja ## compile everything
	@ninja -C $(BUILD) -j $(JOBS)

demo: build ## turn the wheel once on real data: data, train (with a kill), store, serve
	@$(BUILD)/cli/flywheel demo

test: build ## every test that needs no GPU
	@ninja -C $(BUILD) -j $(JOBS) check_headers
	@cd $(BUILD) && ctest --output-on-failure --no-tests=error -LE gpu

bench: build ## every benchmark beside its peer; writes docs/benchmarks.md
	@bench/all

lint: format-check docs-check $(BUILD)/build.ninja ## format, docs and clang-tidy over everything
	@scripts/tidy --all

format: ## clang-format everything in place
	@git ls-files '*.cc' '*.h' '*.cu' | xargs $(CLANG_FORMAT) -i

format-check:
	@git ls-files '*.cc' '*.h' '*.cu' | xargs $(CLANG_FORMAT) --dry-run -Werror

docs-check:
	@scripts/check_docs

asan: setup ## the fast tests under AddressSanitizer and UBSan
	@$(MAKE) --no-print-directory sanitized BUILD=build-asan SANITIZER=address,undefined

tsan: setup ## the fast tests under ThreadSanitizer
	@$(MAKE) --no-print-directory sanitized BUILD=build-tsan SANITIZER=thread

.PHONY: sanitized format-check
sanitized:
	@cmake -G Ninja -S . -B $(BUILD) -DFLYWHEEL_SANITIZER=$(SANITIZER) > /dev/null
	@ninja -C $(BUILD) -j $(JOBS)
	@cd $(BUILD) && ctest --output-on-failure --no-tests=error -L fast

clean: ## remove what was built (not .venv)
	@rm -rf build build-*
