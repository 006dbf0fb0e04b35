#!/usr/bin/env bash
# Everything CI runs: format, folder arrows, unit tests and system tests of the release build, then the same under
# AddressSanitizer and UndefinedBehaviorSanitizer; on x86 Linux the kernels' unit tests for aarch64 too, under qemu.
# Closes with the counts of all.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"
venv=build/deps/venv/bin
export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0:detect_container_overflow=0:abort_on_error=0
export UBSAN_OPTIONS=print_stacktrace=1

step() { printf '\n== %s\n' "$*"; }

step "format"
git ls-files '*.cpp' '*.h' | xargs "$venv/clang-format" --dry-run --Werror
"$venv/python" scripts/check_arrows.py

for preset in release asan; do
  step "$preset: build"
  CMAKE_FLAGS=-DTANDEM_WERROR=ON make --no-print-directory build PRESET=$preset TARGETS=all
  step "$preset: unit tests"
  ctest --test-dir build/$preset --output-on-failure
  step "$preset: system tests"
  select=""; [ $preset = release ] || select="not release_only"
  TANDEM_PROGRAM=$PWD/build/$preset/tandem "$venv/python" -m pytest -q -m "$select" --durations=8 tests/system
done

if [ "$(uname -sm)" = "Linux x86_64" ]; then
  step "neon: unit tests of the kernels"
  make --no-print-directory test-neon
fi
