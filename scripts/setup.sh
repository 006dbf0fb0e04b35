#!/usr/bin/env bash
# Installs what a build (setup.sh build), the tests (setup.sh test), clang-tidy (setup.sh tidy) or the tests for aarch64
# on another machine (setup.sh neon) need and the machine lacks: packages by apt or Homebrew, the MLX wheel and Python
# tools into build/deps. A second run finds its stamp and does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
goal=${1:?usage: setup.sh build|test|tidy|neon}
deps=build/deps
mkdir -p "$deps"

MLX_VERSION=0.32.4
RUST_AT_LEAST=1.87
APT_BUILD="build-essential cmake ninja-build pkg-config python3 python3-pip python3-venv unzip
  libboost1.81-dev nlohmann-json3-dev libcli11-dev libfmt-dev libspdlog-dev libssl-dev libcurl4-openssl-dev
  libedit-dev libyaml-cpp-dev libgtest-dev"
APT_NEON="cmake ninja-build python3 python3-pip python3-venv nlohmann-json3-dev libfmt-dev libspdlog-dev googletest
  g++-aarch64-linux-gnu qemu-user"
BREW_BUILD="cmake ninja pkg-config python@3.12 boost nlohmann-json cli11 fmt spdlog yaml-cpp openssl@3 googletest rust"
# mlx-lm reads what tandem quantize writes; with what it needs it takes 350 MB.
PIP_TEST="clang-format==14.0.6 pytest==8.3.5 pytest-timeout==2.3.1 openai==1.109.1 mlx-lm==0.32.2"
[ "$(uname)" = Darwin ] || PIP_TEST="$PIP_TEST mlx[cpu]==$MLX_VERSION"

stamp="$deps/.$goal-$(cksum scripts/setup.sh | cut -d' ' -f1)"
[ -e "$stamp" ] && exit 0

say() { printf 'setup: %s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"
  else say "installing packages needs root or sudo: $*"; exit 1; fi
}

rust_is_new_enough() {
  local version
  version=$(PATH="$PATH:$HOME/.cargo/bin" cargo --version 2>/dev/null | cut -d' ' -f2) || return 1
  [ -n "$version" ] && [ "$(printf '%s\n' "$RUST_AT_LEAST" "$version" | sort -V | head -n1)" = "$RUST_AT_LEAST" ]
}

install_with_apt() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$deps/apt.log" 2>&1 \
    || { tail -n 20 "$deps/apt.log" >&2; exit 1; }
}

install_packages() {
  if [ "$(uname)" = Darwin ]; then
    command -v brew >/dev/null || { say "Homebrew is needed: see its site, brew.sh"; exit 1; }
    # shellcheck disable=SC2086
    brew install --quiet $BREW_BUILD
  else
    command -v apt-get >/dev/null || { say "this script knows apt (Debian 12) and Homebrew; install by hand: $APT_BUILD"; exit 1; }
    # shellcheck disable=SC2086
    install_with_apt $APT_BUILD
    rust_is_new_enough || install_with_apt cargo-web rustc-web
    rust_is_new_enough || { say "cargo $RUST_AT_LEAST or newer is needed: remove the older one from PATH"; exit 1; }
  fi
}

# The wheel holds headers, CMake files and library; nothing of Python is used at run time.
# install_mlx FOLDER WHEEL [PIP'S OPTIONS]
install_mlx() {
  local folder=$deps/$1 wheel=$2
  shift 2
  [ "$(cat "$folder/VERSION" 2>/dev/null)" = "$MLX_VERSION" ] && return
  say "fetching $wheel $MLX_VERSION $*"
  rm -rf "$folder" "$folder.part"
  "$deps/venv/bin/pip" download -q --no-deps -d "$folder.part" "$@" "$wheel==$MLX_VERSION"
  python3 -m zipfile -e "$folder.part"/*.whl "$folder.part"
  rm "$folder.part"/*.whl
  echo "$MLX_VERSION" >"$folder.part/VERSION"
  mv "$folder.part" "$folder"
}

make_venv() {
  [ -x "$deps/venv/bin/pip" ] || python3 -m venv "$deps/venv"
}

if [ "$goal" = tidy ]; then  # not from pip: its wheel lacks the compiler's own headers
  if [ "$(uname)" = Darwin ]; then brew install --quiet llvm; else install_with_apt clang-tidy; fi
  touch "$stamp"
  exit 0
fi
if [ "$goal" = neon ]; then
  # shellcheck disable=SC2086
  install_with_apt $APT_NEON
  make_venv
  install_mlx mlx-aarch64 mlx-cpu --only-binary=:all: --platform manylinux_2_35_aarch64
  touch "$stamp"
  exit 0
fi
install_packages
make_venv
if [ "$(uname)" = Darwin ]; then install_mlx mlx mlx-metal; else install_mlx mlx mlx-cpu; fi
if [ "$goal" = test ]; then
  say "installing the test tools: $PIP_TEST"
  # shellcheck disable=SC2086
  "$deps/venv/bin/pip" install -q $PIP_TEST
fi
touch "$stamp"
