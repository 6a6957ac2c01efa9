#!/bin/sh
# Format check and clang-tidy over the library and the command line. usage: lint.sh BUILD
set -eu
cd "$(dirname "$0")/.."
git ls-files '*.cc' '*.h' | xargs clang-format-14 --dry-run --Werror
# The compile commands are g++'s; clang does not know all of its warnings.
git ls-files 'croquis/*.cc' 'apps/*.cc' | grep -v -e '_test\.cc$' -e '_avx' -e '_amx' | xargs -P "$(nproc)" -n 4 clang-tidy-14 --quiet --extra-arg=-Wno-unknown-warning-option -p "$1"
