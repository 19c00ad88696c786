# `make help` lists the targets. Everything sets up what it needs first.
BUILD ?= build
CMAKE_FLAGS ?=
JOBS ?= $(shell nproc)
# Tests at once. One more than cores: some wait, for a lost node or for a daemon to start.
TEST_JOBS ?= $(shell expr $$(nproc) + 1)
SHELL := /bin/bash
# Versions differ in layout: 14 decides wherever it is.
CLANG_FORMAT = $(shell command -v clang-format-14 || echo clang-format)

.PHONY: help setup build program demo test test-all bench lint format docs-check asan tsan fuzz clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what is missing (Debian packages, .venv)
	@{ cmp -s <(cat scripts/packages.txt scripts/setup) .cache/setup.done && [ -x .venv/bin/pip ] && \
	  compgen -G '.venv/lib/python3*/site-packages/pyarrow/libarrow.so' > /dev/null && \
	  compgen -G '.venv/lib/python3*/site-packages/torch/lib/libtorch_cpu.so' > /dev/null; } || scripts/setup

$(BUILD)/build.ninja: | setup
	@cmake -G Ninja -S . -B $(BUILD) $(CMAKE_FLAGS) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }; mv $(BUILD).log $(BUILD)/configure.log

build: setup $(BUILD)/build.ninja ## compile everything
	@ninja -C $(BUILD) -j $(JOBS)

program: setup $(BUILD)/build.ninja
	@ninja -C $(BUILD) -j $(JOBS) flywheel

demo: program ## turn the wheel once on real data: data, train (with a kill), store, serve
	@$(BUILD)/cli/flywheel demo

test: build ## every test that needs no GPU
	@ninja -C $(BUILD) -j $(JOBS) check_headers
	@tests/make_peers
	@cd $(BUILD) && ctest -j $(TEST_JOBS) --output-on-failure --no-tests=error -LE gpu

test-all: export FLYWHEEL_TEST_ALL = 1
test-all: test ## the same with every case of the slow tests, of which `make test` draws some: an hour more

bench: build ## every benchmark beside its peer; writes docs/benchmarks.md
	@bench/all

lint: format-check docs-check names-check $(BUILD)/build.ninja ## layout, docs, names and clang-tidy over everything
	@scripts/tidy --all

format: setup ## clang-format everything in place
	@git ls-files '*.cc' '*.h' '*.cu' | xargs $(CLANG_FORMAT) -i

format-check: setup
	@git ls-files '*.cc' '*.h' '*.cu' | xargs $(CLANG_FORMAT) --dry-run -Werror

docs-check:
	@scripts/check_docs

names-check:
	@scripts/check_names

asan: setup ## the fast tests under AddressSanitizer and UBSan, without libtorch (the room train)
	@$(MAKE) --no-print-directory sanitized BUILD=build-asan SANITIZER=address,undefined

tsan: setup ## the same under ThreadSanitizer
	@$(MAKE) --no-print-directory sanitized BUILD=build-tsan SANITIZER=thread

# What is not ours and cannot be mended here is named in cmake/sanitizers, each with its reason. die_after_fork=0: the
# launcher starts workers from a process with threads. setarch -R: ThreadSanitizer's memory layout collides with the
# randomized one of newer kernels ("unexpected memory mapping"). Of Arrow's allocator ThreadSanitizer would die: of the thread
# that it starts when it is loaded, whose place in memory a forked test's first thread takes again, and of more than 64 locks
# that it holds while a process forks.
.PHONY: sanitized format-check names-check
sanitized: export ASAN_OPTIONS = detect_stack_use_after_return=1:strict_string_checks=1
sanitized: export LSAN_OPTIONS = suppressions=$(CURDIR)/cmake/sanitizers/leaks.txt:print_suppressions=0
sanitized: export UBSAN_OPTIONS = print_stacktrace=1:halt_on_error=1
sanitized: export JE_ARROW_MALLOC_CONF = background_thread:false,narenas:1
sanitized: export TSAN_OPTIONS = suppressions=$(CURDIR)/cmake/sanitizers/races.txt:die_after_fork=0:second_deadlock_stack=1
sanitized:
	@cmake -G Ninja -S . -B $(BUILD) -DFLYWHEEL_SANITIZER=$(SANITIZER) > /dev/null
	@ninja -C $(BUILD) -j $(JOBS) fast_tests
	@cd $(BUILD) && $$(setarch -R true 2> /dev/null && echo setarch -R) ctest --output-on-failure --no-tests=error -L fast

FUZZ_SECONDS ?= 60
fuzz: setup ## each fuzzer of tests/fuzz with libFuzzer for FUZZ_SECONDS (60); installs Clang if it is missing
	@tests/fuzz/run $(FUZZ_SECONDS)

clean: ## remove what was built (build, build-*), not .venv
	@rm -rf build build-*
