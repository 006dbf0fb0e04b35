# A thin front over the CMake presets: release (default), debug, asan, tsan; neon has a target of its own.
PRESET ?= release
PROGRAM = build/$(PRESET)/tandem
# What is built of it: tandem alone, or all, tests and benchmarks too.
TARGETS ?= tandem
BENCHES = collectives cpu curves golden gradients train weights
SHELL = bash
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: demo test build setup setup-test test-neon format format-check tidy clean help $(BENCHES:%=bench-%)

help:  ## this list
	@grep -E '^[a-z%-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

demo: build  ## install what is missing, build, run the demo on two ranks
	@$(PROGRAM) demo

build: setup  ## build/$(PRESET)/tandem
	@test -f build/$(PRESET)/build.ninja || cmake --preset $(PRESET) $(CMAKE_FLAGS) >build/$(PRESET).configure.log 2>&1 \
	  || { cat build/$(PRESET).configure.log; exit 1; }
	@[ -e $(PROGRAM) ] || echo "building; the first time takes about 10 minutes on 2 cores" >&2
	@set -o pipefail; cmake --build --preset $(PRESET) --target $(TARGETS) -j $(JOBS) -- --quiet \
	  | sed '/no work to do/d' >&2

setup:
	@scripts/setup.sh build

setup-test:  ## what make test and pytest by hand need, in build/deps
	@scripts/setup.sh test

test: setup-test  ## everything CI runs: format, unit and system tests, then both under ASan+UBSan
	@scripts/test.sh

test-neon:  ## the kernels' unit tests cross-compiled for aarch64, run by qemu (part of test on x86 Linux)
	@scripts/setup.sh neon
	@test -f build/neon/build.ninja || cmake --preset neon >build/neon.configure.log 2>&1 \
	  || { cat build/neon.configure.log; exit 1; }
	@cmake --build --preset neon -j $(JOBS) -- --quiet
	@ctest --test-dir build/neon --output-on-failure

format: setup-test  ## format every C++ source
	@git ls-files '*.cpp' '*.h' | xargs build/deps/venv/bin/clang-format -i

format-check: setup-test
	@git ls-files '*.cpp' '*.h' | xargs build/deps/venv/bin/clang-format --dry-run --Werror

tidy: build  ## clang-tidy, the rules in .clang-tidy
	@scripts/setup.sh tidy
	@scripts/tidy.sh build/$(PRESET)

bench-%: TARGETS = tandem bench/all
$(BENCHES:%=bench-%): bench-%: build
	@python3 bench/$*.py $(BENCH_FLAGS)

bench-%:  ## bench-cpu, …: bench/NAME.py with BENCH_FLAGS, into build/bench/NAME.json
	@echo "there is no bench/$*.py: $(BENCHES)" >&2; exit 1

clean:  ## remove what was built, keep what was installed
	@rm -rf build/release build/debug build/asan build/tsan build/neon build/rust
