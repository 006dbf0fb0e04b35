#!/usr/bin/env bash
# clang-tidy over src/ by the rules of .clang-tidy. usage: tidy.sh BUILD_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
git ls-files 'src/*.cpp' | xargs -P "$(nproc 2>/dev/null || echo 2)" -n 4 build/deps/venv/bin/clang-tidy -p "$1" --quiet
